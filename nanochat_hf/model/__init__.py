"""The model: all that a Hub checkpoint needs to run, and nothing else (torch and transformers only)."""
