"""The cluster of processes that share a Redis: ownership of calls, stops, and the Redis client."""
