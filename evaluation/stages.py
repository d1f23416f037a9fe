"""All evaluations of all stages of a run in one process.

    python evaluation/stages.py --config training/recipes/quickstart.yaml --run_dir runs/quickstart
    python evaluation/stages.py --run_dir runs/d12 --evaluations bits_per_byte core --core_bundle eval_bundle
    accelerate launch --num_processes 8 evaluation/stages.py --config training/recipes/speedrun.yaml --run_dir runs/d24

Results that were made with the same settings and are newer than the weights are kept (--redo makes them again). They
lie in eval/ of each stage's folder, where training/report.py finds them.
"""

from nanochat_hf import settings
from nanochat_hf.evals.runner import EvaluationConfig, run_evaluations


def main() -> None:
    config = settings.parse_stage("evaluation", EvaluationConfig)
    run_evaluations(config, config.evaluations)


if __name__ == "__main__":
    settings.run_main(main)
