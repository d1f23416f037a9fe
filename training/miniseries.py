"""A sweep over depths: one base model per depth with the depth's own settings, compared in a table and a plot.

    python training/miniseries.py --depths 8 10 12 14 --run_dir runs/miniseries --tokenizer RUN/tokenizer
    python training/miniseries.py --depths 2 4 --run_dir runs/mini --tokenizer RUN/tokenizer -- --data microworld

training/pretrain.py trains each model; its options follow after `--`. Finished models are not trained again. The table
and the plot show loss, bits per byte and CORE against the FLOPs of each run. With good settings the curve is smooth. A
model above it was trained with settings that do not fit its depth.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.miniseries import main

if __name__ == "__main__":
    run_main(main)
