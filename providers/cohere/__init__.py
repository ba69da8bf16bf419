"""The Cohere dialect: the chat API v2, POST /chat."""
