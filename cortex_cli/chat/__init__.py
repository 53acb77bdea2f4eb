"""`cortex chat`: the conversation, how responses are displayed, and the prompt."""
