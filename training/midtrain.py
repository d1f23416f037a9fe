"""Midtraining: the base model learns what a conversation looks like, from all of its tokens.

    python training/midtrain.py --config training/recipes/quickstart.yaml --model runs/quickstart/base \\
        --output_dir runs/quickstart/mid                                                          # CPU or one GPU
    accelerate launch --config_file accelerate_config.yaml training/midtrain.py \\
        --config training/recipes/classic-d20.yaml --model runs/d20/base --output_dir runs/d20/mid   # 8×H100

--tasks chooses another mixture: --tasks smoltalk gsm8k*2 conversations=my_chats.jsonl. Run the same command again to
resume from the newest checkpoint (--save_every).
"""

import time
from dataclasses import dataclass

from nanochat_hf import settings
from nanochat_hf.settings import setting
from nanochat_hf.trainers.stage_settings import TASKS_HELP, SupervisedConfig, check_stage


@dataclass
class MidtrainConfig(SupervisedConfig):
    """Upstream's values of October 2025 are the defaults; see SupervisedConfig and StageConfig for the names."""

    tasks: list[str] = setting(["smoltalk", "mmlu", "gsm8k", "spelling@200000", "spelling-bee@80000"], TASKS_HELP)
    initialize_control_tokens: list[str] = setting(
        [], "token=text …: the control token gets the embeddings of the text's last token"
    )


def main() -> None:
    config = settings.parse_stage("midtrain", MidtrainConfig)
    started = time.time()
    check_stage(config)

    from nanochat_hf.trainers.stage import finish, initialize_control_tokens, load_model, open_stage, train
    from nanochat_hf.trainers.supervised import make_trainer

    open_stage(config)
    model, tokenizer = load_model(config.model)
    initialize_control_tokens(model, tokenizer, config.initialize_control_tokens)
    trainer = make_trainer(config, model, tokenizer, train_on="all")
    train(trainer)
    finish(trainer, "midtrain", config, started, trainer.evaluate if config.val_tasks else dict)


if __name__ == "__main__":
    settings.run_main(main)
