"""Threads and greenlets. This package imports no other package of Sluice."""
