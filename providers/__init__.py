"""The providers: rows of hosts, the dialects that they speak, and the transport to reach them."""
