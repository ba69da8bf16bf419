"""API keys, the file that holds them, and the redaction of secrets."""
