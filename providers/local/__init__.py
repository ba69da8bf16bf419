"""The embedded provider: a toy model that makes a fresh checkout answer, without network or key."""
