"""Chat tasks of any chat model, and their mean, ChatCORE.

    python evaluation/chat.py --checkpoints runs/quickstart/sft --tasks microworld-exam@200 microworld-problems@100
    python evaluation/chat.py --checkpoints runs/d24/sft --tasks arc-easy=DIR arc-challenge=DIR mmlu=DIR gsm8k=DIR
    python evaluation/chat.py --checkpoints runs/d24/rl --tasks gsm8k=DIR --num_samples 16 --temperature 1.0  # pass@k
    python evaluation/chat.py --checkpoints runs/d24/sft --tasks humaneval=DIR --allow_code_execution
    python evaluation/chat.py --checkpoints HuggingFaceTB/SmolLM2-135M-Instruct --tasks arc-easy=DIR

Exams are scored by the logits of the answer's letters. Problems are scored by sampled answers, in which a nanochat
model may use its calculator. Other models get prompts in their own chat template. The result is written to
eval/chat.json in the checkpoint's folder.
"""

from nanochat_hf import settings
from nanochat_hf.evals.runner import EvaluationConfig, run_evaluations


def main() -> None:
    run_evaluations(settings.parse_stage("evaluation", EvaluationConfig), ["chat"])


if __name__ == "__main__":
    settings.run_main(main)
