"""Where a call goes: names of models, circuit breakers, retries, and what a provider's error
means."""
