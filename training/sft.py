"""Supervised fine-tuning: the model learns to answer, from the tokens of the assistant only.

    python training/sft.py --config training/recipes/quickstart.yaml --model runs/quickstart/mid \\
        --output_dir runs/quickstart/sft                                                          # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/sft.py --config training/recipes/speedrun.yaml \\
        --model runs/speedrun/base --output_dir runs/speedrun/sft                                 # 8×H100

Starts from a midtrained model, or directly from the base model with a larger mixture and larger rates. --tasks chooses
another mixture: --tasks smoltalk@10000 conversations=my_chats.jsonl*2. Run the same command again to resume from the
newest checkpoint (--save_every).
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.sft import main

if __name__ == "__main__":
    run_main(main)
