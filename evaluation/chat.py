"""Chat tasks of any chat model, and their mean, ChatCORE.

    python evaluation/chat.py --checkpoints runs/quickstart/sft --tasks microworld-exam@200 microworld-problems@100
    python evaluation/chat.py --checkpoints runs/d24/sft --tasks arc-easy=DIR arc-challenge=DIR mmlu=DIR gsm8k=DIR
    python evaluation/chat.py --checkpoints runs/d24/rl --tasks gsm8k=DIR --num_samples 16 --temperature 1.0  # pass@k
    python evaluation/chat.py --checkpoints runs/d24/sft --tasks humaneval=DIR --allow_code_execution
    python evaluation/chat.py --checkpoints HuggingFaceTB/SmolLM2-135M-Instruct --tasks arc-easy=DIR

Exams are scored by the logits of the answer's letters. Problems are scored by sampled answers, in which a nanochat
model may use its calculator. Other models get prompts in their own chat template. The result is written to
eval/chat.json in the checkpoint's folder.
"""

import sys

from nanochat_hf.settings import run_main
from nanochat_hf.stages.evaluate import main

if __name__ == "__main__":
    run_main(lambda: main(["chat", *sys.argv[1:]]))
