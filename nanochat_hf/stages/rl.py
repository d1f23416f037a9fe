"""Reinforcement learning: the model answers problems, with the calculator, and learns from the rewards.

    nanochat-hf rl --config quickstart --model runs/quickstart/sft --output_dir runs/quickstart/rl
    nanochat-hf rl --model runs/d12/sft --output_dir runs/d12/rl --tasks gsm8k --num_generations 8

    # on 8 GPUs
    accelerate launch --num_processes 8 --mixed_precision bf16 -m nanochat_hf.stages.rl \\
        --config speedrun --model runs/speedrun/sft --output_dir runs/speedrun/rl

Each step samples `num_generations` answers to each of `prompts_per_step` prompts; an answer's advantage is its reward
minus the mean of its group. The policy that passes most held-out problems is kept in `best/`. Run the same command
again to resume from the newest checkpoint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import StageHelp, setting
from nanochat_hf.stages.option_groups import CHAT_GROUPS
from nanochat_hf.trainers.rewards import check_rewards
from nanochat_hf.trainers.stage_settings import RolloutConfig, check_stage


@dataclass
class RLConfig(RolloutConfig):
    """Defaults: upstream's GSM8K run; see RolloutConfig and StageConfig for the names."""

    tasks: list[str] = setting(["gsm8k"], "problems to learn from: name[/split][=source][@limit][*repeat] …")


HELP = StageHelp(
    "rl",
    __doc__,
    "model output_dir tasks val_tasks num_iterations prompts_per_step num_generations max_new_tokens reward "
    "allow_code_execution",
    CHAT_GROUPS,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("rl", RLConfig, argv, HELP)
    started = time.time()
    check_stage(config)
    check_rewards(config.reward)

    from nanochat_hf.trainers.grpo import make_trainer
    from nanochat_hf.trainers.stage import finish, load_model, open_stage, set_default_sampling, train

    read = open_stage(config)
    model, tokenizer = load_model(config.model, lora=config.lora_rank > 0)
    set_default_sampling(model, config.default_sampling)
    trainer = make_trainer(config, model, tokenizer)
    train(trainer)
    facts = {"best": trainer.pass_at_k.best, "fingerprint": read}
    finish(trainer, "rl", config, started, lambda: trainer.pass_at_k.latest, **facts)


if __name__ == "__main__":
    settings.run_main(main)
