"""Reinforcement learning: the model answers problems, with the calculator, and learns from the rewards.

    python training/rl.py --config training/recipes/quickstart.yaml --model runs/quickstart/sft \\
        --output_dir runs/quickstart/rl                                                           # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/rl.py --config training/recipes/speedrun.yaml \\
        --model runs/speedrun/sft --output_dir runs/speedrun/rl                                   # 8×H100

Each step samples `num_generations` answers to each of `prompts_per_step` prompts; an answer's advantage is its reward
minus the mean of its group. Run the same command again to resume from the newest checkpoint (--save_every).
"""

import time
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import setting
from nanochat_hf.trainers.stage_settings import RolloutConfig, check_stage


@dataclass
class RLConfig(RolloutConfig):
    """Defaults: upstream's GSM8K run; see RolloutConfig and StageConfig for the names."""

    tasks: list[str] = setting(["gsm8k"], "problems to learn from: name[/split][=source][@limit][*repeat] …")


def main() -> None:
    config = settings.parse_stage("rl", RLConfig)
    started = time.time()
    check_stage(config)

    from nanochat_hf.trainers.grpo import make_trainer
    from nanochat_hf.trainers.stage import finish, load_model, open_stage, train

    open_stage(config)
    model, tokenizer = load_model(config.model)
    trainer = make_trainer(config, model, tokenizer)
    train(trainer)
    finish(trainer, "rl", config, started, lambda: trainer.pass_at_k.latest)


if __name__ == "__main__":
    settings.run_main(main)
