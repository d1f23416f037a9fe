"""Bits per byte of checkpoints on held-out documents: the loss in units that do not depend on the tokenizer.

    python evaluation/bits_per_byte.py --checkpoints runs/quickstart/base                     # built-in data
    python evaluation/bits_per_byte.py --checkpoints runs/d12/base --data DIR --max_documents 2000
    python evaluation/bits_per_byte.py --checkpoints openai-community/gpt2 --data DIR         # any Hub model
    accelerate launch --num_processes 8 evaluation/bits_per_byte.py --checkpoints runs/d24/base --data DIR

The result is written to eval/bits_per_byte.json in the checkpoint's folder.
"""

import sys

from nanochat_hf.settings import run_main
from nanochat_hf.stages.evaluate import main

if __name__ == "__main__":
    run_main(lambda: main(["bits_per_byte", *sys.argv[1:]]))
