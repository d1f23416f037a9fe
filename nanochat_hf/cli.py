"""The `nanochat-hf` command."""


def main() -> None:
    raise SystemExit("usage: nanochat-hf COMMAND")
