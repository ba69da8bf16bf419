"""Who the callers are: keys, the file that holds them, and what must not show of a secret."""
