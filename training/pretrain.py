"""Pretrains a base model on packed text; `--depth` sets everything else.

    python training/pretrain.py --config training/recipes/quickstart.yaml --tokenizer RUN/tokenizer \\
        --output_dir RUN/base
    python training/pretrain.py --depth 12 --tokenizer RUN/tokenizer --output_dir RUN/base --auto_device_batch true
    accelerate launch --config_file training/accelerate_cpu.yaml training/pretrain.py \\
        --config training/recipes/smoke.yaml --tokenizer RUN/tokenizer --output_dir RUN/base
    accelerate launch --config_file accelerate_config.yaml training/pretrain.py \\
        --config training/recipes/speedrun.yaml --tokenizer RUN/tokenizer --output_dir RUN/base

Run the same command again to resume an interrupted run from its newest intact checkpoint.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.pretrain import main

if __name__ == "__main__":
    run_main(main)
