"""CORE of any causal language model: 22 in-context-learning tasks, with items and prompts as in nanochat.

    python evaluation/core.py --checkpoints runs/d12/base --core_bundle core --max_per_task 100
    python evaluation/core.py --checkpoints openai-community/gpt2-xl --core_bundle core   # published: 0.2565
    accelerate launch --num_processes 8 evaluation/core.py --checkpoints runs/d24/base --core_bundle core
    python evaluation/core.py --checkpoints runs/quickstart/base       # the microworld's completion tasks, not CORE

`core` stands for nanochat's bundle, which is downloaded once; any other bundle is named by its folder. CORE is shown
twice: with the published chance accuracies, to compare with others, and with the corrected ones. The result is
written to eval/core.json in the checkpoint's folder.

Without a bundle, completion tasks about the microworld are scored by the same code. Their mean is reported as
`microworld_completion`, because it cannot be compared with CORE.
"""

import sys

from nanochat_hf.settings import run_main
from nanochat_hf.stages.evaluate import main

if __name__ == "__main__":
    run_main(lambda: main(["core", *sys.argv[1:]]))
