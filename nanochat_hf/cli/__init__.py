"""The `nanochat-hf` command (`main`) and the chat in a terminal (`terminal_chat`)."""
