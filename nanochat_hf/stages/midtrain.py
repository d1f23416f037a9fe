"""Midtraining: the base model learns what a conversation looks like, from all of its tokens.

    nanochat-hf midtrain --config quickstart --model runs/quickstart/base --output_dir runs/quickstart/mid
    nanochat-hf midtrain --model runs/d12/base --output_dir runs/d12/mid \\
        --tasks smoltalk@50000 gsm8k*2 conversations=my_chats.jsonl

    # on 8 GPUs
    accelerate launch --num_processes 8 --mixed_precision bf16 -m nanochat_hf.stages.midtrain \\
        --config classic-d20 --model runs/d20/base --output_dir runs/d20/mid

Run the same command again to resume from the newest checkpoint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import StageHelp, setting
from nanochat_hf.stages.option_groups import CHAT_GROUPS
from nanochat_hf.trainers.stage_settings import TASKS_HELP, SupervisedConfig, check_stage


@dataclass
class MidtrainConfig(SupervisedConfig):
    """Upstream's values of October 2025 are the defaults; see SupervisedConfig and StageConfig for the names."""

    tasks: list[str] = setting(["smoltalk", "mmlu", "gsm8k", "spelling@200000", "spelling-bee@80000"], TASKS_HELP)
    initialize_control_tokens: list[str] = setting(
        [], "token=text …: the control token gets the embeddings of the text's last token"
    )
    initialize_control_head: bool = setting(
        False, "give the head's rows of control tokens, which pretraining has never seen, the mean of the other rows"
    )


HELP = StageHelp(
    "midtrain",
    __doc__,
    "model output_dir tasks val_tasks num_iterations total_batch_size device_batch_size init_lr_frac",
    CHAT_GROUPS,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("midtrain", MidtrainConfig, argv, HELP)
    started = time.time()
    check_stage(config)

    from nanochat_hf.trainers.stage import (
        finish,
        initialize_control_head,
        initialize_control_tokens,
        load_model,
        open_stage,
        set_default_sampling,
        train,
    )
    from nanochat_hf.trainers.supervised import make_trainer

    read = open_stage(config)
    model, tokenizer = load_model(config.model, lora=config.lora_rank > 0)
    set_default_sampling(model, config.default_sampling)
    initialize_control_tokens(model, tokenizer, config.initialize_control_tokens)
    if config.initialize_control_head:
        initialize_control_head(model, tokenizer)
    trainer = make_trainer(config, model, tokenizer, train_on="all")
    train(trainer)
    finish(trainer, "midtrain", config, started, trainer.evaluate if config.val_tasks else dict, fingerprint=read)


if __name__ == "__main__":
    settings.run_main(main)
