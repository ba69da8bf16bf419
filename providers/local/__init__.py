"""The embedded provider: a toy model, so that a new installation works without network or key."""
