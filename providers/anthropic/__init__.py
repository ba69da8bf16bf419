"""The Anthropic dialect: the Messages API, POST /messages."""
