"""Supervised fine-tuning: the model learns to answer, from the tokens of the assistant only.

    nanochat-hf sft --config quickstart --model runs/quickstart/mid --output_dir runs/quickstart/sft
    nanochat-hf sft --model runs/d12/mid --output_dir runs/d12/sft \\
        --tasks smoltalk@10000 conversations=my_chats.jsonl*2

    # on 8 GPUs
    accelerate launch --num_processes 8 --mixed_precision bf16 -m nanochat_hf.stages.sft \\
        --config speedrun --model runs/speedrun/base --output_dir runs/speedrun/sft

It starts from a midtrained model, or directly from the base model with a larger mixture and larger rates. Run the same
command again to resume from the newest checkpoint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import MAX_RATE, StageHelp, setting
from nanochat_hf.stages.option_groups import CHAT_GROUPS
from nanochat_hf.trainers.stage_settings import TASKS_HELP, SupervisedConfig, check_stage


@dataclass
class SFTStageConfig(SupervisedConfig):
    """Defaults: upstream's learning rates of July 2026 (base → SFT); see SupervisedConfig and StageConfig."""

    tasks: list[str] = setting(["smoltalk", "mmlu*3", "gsm8k*4"], TASKS_HELP)
    embedding_lr: float = setting(0.3, "AdamW's rate for the embeddings, at width 768", at_least=0, at_most=MAX_RATE)
    unembedding_lr: float = setting(0.008, "AdamW's rate for the head, at width 768", at_least=0, at_most=MAX_RATE)
    init_lr_frac: float = setting(0.8, "factor on all learning rates", at_least=0, at_most=MAX_RATE)
    warmdown_ratio: float = setting(0.5, "share of the steps in which the rates fall", at_least=0, at_most=1)
    eval_every: int = setting(
        200, "steps between measurements on held-out data; 0: never", at_least=0, also=[-1], off=0
    )


HELP = StageHelp(
    "sft",
    __doc__,
    "model output_dir tasks val_tasks epochs total_batch_size device_batch_size init_lr_frac",
    CHAT_GROUPS,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("sft", SFTStageConfig, argv, HELP)
    started = time.time()
    check_stage(config)

    from nanochat_hf.trainers.stage import finish, load_model, open_stage, set_default_sampling, train
    from nanochat_hf.trainers.supervised import make_trainer

    read = open_stage(config)
    model, tokenizer = load_model(config.model, lora=config.lora_rank > 0)
    set_default_sampling(model, config.default_sampling)
    trainer = make_trainer(config, model, tokenizer, train_on="assistant")
    train(trainer)
    finish(trainer, "sft", config, started, trainer.evaluate if config.val_tasks else dict, fingerprint=read)


if __name__ == "__main__":
    settings.run_main(main)
