"""Trains the tokenizer: a byte-pair vocabulary from the training text, nine control tokens and the chat template.

    python training/tokenizer.py --output_dir runs/mine/tokenizer --data my_texts/ --vocab_size 32768
    python training/tokenizer.py --config training/recipes/quickstart.yaml --output_dir runs/quickstart/tokenizer

The output folder loads with `AutoTokenizer.from_pretrained`.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.tokenizer import main

if __name__ == "__main__":
    run_main(main)
