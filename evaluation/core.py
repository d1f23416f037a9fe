"""CORE of any causal language model: 22 in-context-learning tasks, items and prompts as in nanochat.

    python evaluation/core.py --checkpoints runs/quickstart/base                                 # built-in tiny bundle
    python evaluation/core.py --checkpoints runs/d12/base --core_bundle eval_bundle --max_per_task 100
    python evaluation/core.py --checkpoints openai-community/gpt2-xl --core_bundle eval_bundle   # published: 0.2565
    accelerate launch --num_processes 8 evaluation/core.py --checkpoints runs/d24/base --core_bundle eval_bundle

The bundle is nanochat's eval_bundle.zip, unpacked. Shows CORE with the published chance accuracies, to compare, and
with the corrected ones.
"""

from nanochat_hf import settings
from nanochat_hf.evals.runner import EvaluationConfig, run_evaluations


def main() -> None:
    run_evaluations(settings.parse_stage("evaluation", EvaluationConfig), ["core"])


if __name__ == "__main__":
    settings.run_main(main)
