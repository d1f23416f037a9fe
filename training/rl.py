"""Reinforcement learning: the model answers problems, with the calculator, and learns from the rewards.

    python training/rl.py --config training/recipes/quickstart.yaml --model runs/quickstart/sft \\
        --output_dir runs/quickstart/rl                                                           # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/rl.py --config training/recipes/speedrun.yaml \\
        --model runs/speedrun/sft --output_dir runs/speedrun/rl                                   # 8×H100

Each step samples `num_generations` answers to each of `prompts_per_step` prompts; an answer's advantage is its reward
minus the mean of its group. Run the same command again to resume from the newest checkpoint (--save_every).
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.rl import main

if __name__ == "__main__":
    run_main(main)
