"""The Google dialect: the Gemini API."""
