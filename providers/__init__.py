"""Providers: the rows of hosts, the dialects that hosts speak, and the transport to reach them."""
