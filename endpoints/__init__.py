"""The HTTP faces, a blueprint a module. An endpoint knows no dialect, and a dialect no endpoint."""
