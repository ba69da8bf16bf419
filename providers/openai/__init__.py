"""The OpenAI dialect, for hosts with POST /completions (legacy), /chat/completions, or both."""
