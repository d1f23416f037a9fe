"""Bits per byte of checkpoints on held-out documents: the loss in units that do not depend on the tokenizer.

    python evaluation/bits_per_byte.py --checkpoints runs/quickstart/base                     # built-in data
    python evaluation/bits_per_byte.py --checkpoints runs/d12/base --data DIR --max_documents 2000
    python evaluation/bits_per_byte.py --checkpoints openai-community/gpt2 --data DIR         # any Hub model
    accelerate launch --num_processes 8 evaluation/bits_per_byte.py --checkpoints runs/d24/base --data DIR

The result is written to eval/bits_per_byte.json in the checkpoint's folder.
"""

from nanochat_hf import settings
from nanochat_hf.evals.runner import EvaluationConfig, run_evaluations


def main() -> None:
    run_evaluations(settings.parse_stage("evaluation", EvaluationConfig), ["bits_per_byte"])


if __name__ == "__main__":
    settings.run_main(main)
