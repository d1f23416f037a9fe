"""`python -m nanochat_hf.cli` is the `nanochat-hf` command."""

from nanochat_hf.cli.main import main

main()
