"""DPO: the model learns to prefer one answer to another, from pairs.

    python training/dpo.py --config training/recipes/preferences.yaml --model runs/quickstart/sft \\
        --output_dir runs/quickstart/dpo                                                          # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/dpo.py --model runs/speedrun/sft \\
        --output_dir runs/speedrun/dpo --tasks preferences=my_pairs.jsonl                         # 8×H100

Run the same command again to resume from the newest checkpoint (--save_every).
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.dpo import main

if __name__ == "__main__":
    run_main(main)
