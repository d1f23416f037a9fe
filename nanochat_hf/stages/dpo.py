"""DPO: the model learns to prefer one answer to another, from pairs.

    nanochat-hf dpo --config preferences --model runs/quickstart/sft --output_dir runs/quickstart/dpo
    nanochat-hf dpo --model runs/d12/sft --output_dir runs/d12/dpo --tasks preferences=my_pairs.jsonl
    nanochat-hf dpo --model runs/d12/sft --output_dir runs/d12/dpo --tasks gsm8k@2000 --num_samples 8

    # on 8 GPUs
    accelerate launch --num_processes 8 --mixed_precision bf16 -m nanochat_hf.stages.dpo \\
        --model runs/d20/sft --output_dir runs/d20/dpo --tasks preferences=my_pairs.jsonl

A file has a prompt, a `chosen` and a `rejected` answer per line. With `--num_samples` the pairs are the model's own
answers to scored problems: the best and shortest is preferred to the worst and longest. Run the same command again to
resume from the newest checkpoint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import StageHelp, setting
from nanochat_hf.stages.option_groups import CHAT_GROUPS
from nanochat_hf.trainers.stage_settings import PreferenceConfig, check_stage


@dataclass
class DPOStageConfig(PreferenceConfig):
    """See PreferenceConfig and StageConfig for the names."""

    tasks: list[str] = setting([], "pairs, or problems to answer: name[/split][=source][@limit][*repeat] …")


HELP = StageHelp(
    "dpo",
    __doc__,
    "model output_dir tasks val_tasks num_samples epochs pairs_per_step device_batch_size beta init_lr_frac",
    CHAT_GROUPS,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("dpo", DPOStageConfig, argv, HELP)
    started = time.time()
    check_stage(config)

    from nanochat_hf.trainers.preferences import make_trainer
    from nanochat_hf.trainers.stage import finish, load_model, open_stage, train

    read = open_stage(config)
    model, tokenizer = load_model(config.model, lora=config.lora_rank > 0)
    trainer = make_trainer(config, model, tokenizer)
    train(trainer)
    finish(trainer, "dpo", config, started, trainer.evaluate if config.val_tasks else dict, fingerprint=read)


if __name__ == "__main__":
    settings.run_main(main)
