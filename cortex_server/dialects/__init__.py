"""Pure translation between the OpenAI dialect of the engines and the dialects of clients."""
