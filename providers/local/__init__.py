"""The embedded provider: a toy model that works without network and key in a new installation."""
