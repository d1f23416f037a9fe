"""What `nanochat-hf serve` adds to transformers' server."""
