"""Limits of requests and tokens, counted in memory or in Redis, and budgets."""
