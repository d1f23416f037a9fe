"""Evaluations as a library: bits per byte, CORE and the chat tasks. `evaluation/` has the scripts."""
