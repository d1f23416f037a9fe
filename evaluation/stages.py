"""All evaluations of all stages of a run, in one process.

    python evaluation/stages.py --config training/recipes/quickstart.yaml --run_dir runs/quickstart
    python evaluation/stages.py --run_dir runs/d12 --evaluations bits_per_byte core --core_bundle core
    accelerate launch --num_processes 8 evaluation/stages.py --config training/recipes/speedrun.yaml --run_dir runs/d24

Results are written into eval/ of each stage's folder, where training/report.py finds them. A result is kept if it was
made with the same settings and is not older than the weights; --redo evaluates again.
"""

from nanochat_hf.settings import run_main
from nanochat_hf.stages.evaluate import main

if __name__ == "__main__":
    run_main(main)
