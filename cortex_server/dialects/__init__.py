"""Pure translation between the APIs of clients and the OpenAI chat API of engines."""
