"""The stranger's list: does a chat model of the quickstart answer sensibly what a stranger types first?

    python evaluation/strangers.py --checkpoints runs/quickstart/rl
    python evaluation/strangers.py --checkpoints runs/quickstart/rl --stranger_sampling temperature=0.6 top_p=0.9

Messages and rules are in nanochat_hf/data/microworld/strangers_list.yaml; none of the judged messages is in training.
Answers are sampled as chats sample them. The result, with all conversations, is written to eval/strangers.json in the
checkpoint's folder.
"""

import sys

from nanochat_hf.settings import run_main
from nanochat_hf.stages.evaluate import main

if __name__ == "__main__":
    run_main(lambda: main(["strangers", *sys.argv[1:]]))
