"""Threads and greenlets. Nothing here knows what Sluice does."""
