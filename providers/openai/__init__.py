"""The OpenAI dialect: hosts with POST /completions (legacy), /chat/completions, or both."""
