"""The way to providers over the network: a call over HTTP, its connections, and what aborts it."""
