"""Supervised fine-tuning: the model learns to answer, from the tokens of the assistant only.

    python training/sft.py --config training/recipes/quickstart.yaml --model runs/quickstart/mid \\
        --output_dir runs/quickstart/sft                                                          # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/sft.py --config training/recipes/speedrun.yaml \\
        --model runs/speedrun/base --output_dir runs/speedrun/sft                                 # 8×H100

Starts from a midtrained model, or directly from the base model with a larger mixture and larger rates. --tasks chooses
another mixture: --tasks smoltalk@10000 conversations=my_chats.jsonl*2. Run the same command again to resume from the
newest checkpoint (--save_every).
"""

import time
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import setting
from nanochat_hf.trainers.stage_settings import TASKS_HELP, SupervisedConfig, check_stage


@dataclass
class SFTStageConfig(SupervisedConfig):
    """Defaults: upstream's learning rates of July 2026 (base → SFT); see SupervisedConfig and StageConfig."""

    tasks: list[str] = setting(["smoltalk", "mmlu*3", "gsm8k*4"], TASKS_HELP)
    embedding_lr: float = setting(0.3, "AdamW's rate for the embeddings, at width 768", at_least=0)
    unembedding_lr: float = setting(0.008, "AdamW's rate for the head, at width 768", at_least=0)
    init_lr_frac: float = setting(0.8, "factor on all learning rates", at_least=0)
    warmdown_ratio: float = setting(0.5, "share of the steps in which the rates fall", at_least=0, at_most=1)
    eval_every: int = setting(
        200, "steps between measurements on held-out data; 0: never", at_least=0, also=[-1], off=0
    )


def main() -> None:
    config = settings.parse_stage("sft", SFTStageConfig)
    started = time.time()
    check_stage(config)

    from nanochat_hf.trainers.stage import finish, load_model, open_stage, train
    from nanochat_hf.trainers.supervised import make_trainer

    open_stage(config)
    model, tokenizer = load_model(config.model)
    trainer = make_trainer(config, model, tokenizer, train_on="assistant")
    train(trainer)
    finish(trainer, "sft", config, started, trainer.evaluate if config.val_tasks else dict)


if __name__ == "__main__":
    settings.run_main(main)
