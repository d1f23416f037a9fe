"""Midtraining: the base model learns what a conversation looks like, from all of its tokens.

    python training/midtrain.py --config training/recipes/quickstart.yaml --model runs/quickstart/base \\
        --output_dir runs/quickstart/mid                                                          # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/midtrain.py \\
        --config training/recipes/classic-d20.yaml --model runs/d20/base --output_dir runs/d20/mid   # 8×H100

--tasks chooses another mixture: --tasks smoltalk gsm8k*2 conversations=my_chats.jsonl. Run the same command again to
resume from the newest checkpoint (--save_every).
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.midtrain import main

if __name__ == "__main__":
    run_main(main)
