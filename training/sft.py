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
from dataclasses import dataclass, field

from nanochat_hf import settings
from nanochat_hf.trainers.stage import finish, load_model, open_stage, train
from nanochat_hf.trainers.supervised import SupervisedConfig, make_trainer


@dataclass
class SFTStageConfig(SupervisedConfig):
    """Defaults: upstream's learning rates of July 2026 (base → SFT); see SupervisedConfig and StageConfig."""

    tasks: list[str] = field(
        default_factory=lambda: ["smoltalk", "mmlu*3", "gsm8k*4"],
        metadata={"help": "what to train on: name[/split][=source][@limit][*repeat] …"},
    )
    embedding_lr: float = field(default=0.3, metadata={"help": "AdamW's rate for the embeddings, at width 768"})
    unembedding_lr: float = field(default=0.008, metadata={"help": "AdamW's rate for the head, at width 768"})
    init_lr_frac: float = field(default=0.8, metadata={"help": "factor on all learning rates"})
    warmdown_ratio: float = field(default=0.5, metadata={"help": "share of the steps in which the rates fall"})
    eval_every: int = field(default=200, metadata={"help": "steps between measurements on held-out data; 0: never"})


def main() -> None:
    config = settings.parse_stage("sft", SFTStageConfig)
    started = time.time()
    open_stage(config)
    model, tokenizer = load_model(config.model)
    trainer = make_trainer(config, model, tokenizer, train_on="assistant")
    train(trainer)
    metrics = trainer.evaluate() if config.val_tasks else {}
    finish(trainer, "sft", config, started, metrics)


if __name__ == "__main__":
    settings.run_main(main)
