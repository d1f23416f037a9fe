"""The whole pipeline: text → tokenizer → base → mid → SFT → RL → evaluation → report → chat.

    python training/speedrun.py --config training/recipes/quickstart.yaml                   # 2 CPU cores, half an hour
    python training/speedrun.py --config training/recipes/speedrun.yaml                     # 8×H100, GPT-2's CORE
    python training/speedrun.py --config training/recipes/local.yaml --set pretrain=DIR …   # your own files

Each stage is a process of its own and writes a checkpoint folder. Finished stages are skipped: run the same command
again after an interruption. The recipe's section with the stage's name holds its settings.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.speedrun import main

if __name__ == "__main__":
    run_main(main)
