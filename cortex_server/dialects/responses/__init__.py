"""Translation of the OpenAI Responses API."""
