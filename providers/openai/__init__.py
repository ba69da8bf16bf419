"""The OpenAI dialect: hosts with /completions, /chat/completions, or both."""
