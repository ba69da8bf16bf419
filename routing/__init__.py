"""The routing of calls: model names, circuit breakers, retries, and provider errors."""
