"""Measures checkpoints: bits per byte, CORE and chat tasks. Results go into eval/ of each checkpoint's folder.

    nanochat-hf evaluate --config quickstart --run_dir runs/quickstart     # all evaluations of all stages
    nanochat-hf evaluate --run_dir runs/d12 --evaluations bits_per_byte core --core_bundle core
    nanochat-hf evaluate core --help          # one: core, chat, strangers, bits_per_byte, tokenizer

    # on 8 GPUs
    accelerate launch --num_processes 8 -m nanochat_hf.stages.evaluate --config speedrun --run_dir runs/d24

The report finds the results there. A result is kept if it was made with the same settings on the same data and is not
older than the weights; --redo evaluates again.
"""

import sys
from collections.abc import Sequence

from nanochat_hf import settings
from nanochat_hf.evals.evaluation_config import EvaluationConfig, check_evaluation
from nanochat_hf.settings import StageHelp, UserError

BITS_PER_BYTE = """\
Bits per byte of checkpoints on held-out documents: the loss in units that do not depend on the tokenizer.

    nanochat-hf evaluate bits_per_byte --checkpoints runs/quickstart/base                     # built-in data
    nanochat-hf evaluate bits_per_byte --checkpoints runs/d12/base --data DIR --max_documents 2000
    nanochat-hf evaluate bits_per_byte --checkpoints openai-community/gpt2 --data DIR         # any Hub model

    # on 8 GPUs
    accelerate launch --num_processes 8 -m nanochat_hf.stages.evaluate bits_per_byte \\
        --checkpoints runs/d24/base --data DIR

The result is written to eval/bits_per_byte.json in the checkpoint's folder.
"""
CORE = """\
CORE of any causal language model: 22 in-context-learning tasks, with items and prompts as in nanochat.

    nanochat-hf evaluate core --checkpoints runs/d12/base --core_bundle core --max_per_task 100
    nanochat-hf evaluate core --checkpoints openai-community/gpt2-xl --core_bundle core   # published: 0.2565
    nanochat-hf evaluate core --checkpoints runs/quickstart/base     # the microworld's completion tasks, not CORE

    # on 8 GPUs
    accelerate launch --num_processes 8 -m nanochat_hf.stages.evaluate core \\
        --checkpoints runs/d24/base --core_bundle core

`core` stands for nanochat's bundle, which is downloaded once; any other bundle is named by its folder. CORE is shown
twice: with the published chance accuracies, to compare with others, and with the corrected ones. The result is
written to eval/core.json in the checkpoint's folder.

Without a bundle, completion tasks about the microworld are scored by the same code. Their mean is reported as
`microworld_completion`, because it cannot be compared with CORE.
"""
CHAT = """\
Chat tasks of any chat model, and their mean, ChatCORE.

    nanochat-hf evaluate chat --checkpoints runs/quickstart/sft --tasks microworld-exam@200 microworld-problems@100
    nanochat-hf evaluate chat --checkpoints runs/d24/sft --tasks arc-easy=DIR mmlu=DIR gsm8k=DIR
    nanochat-hf evaluate chat --checkpoints runs/d24/rl --tasks gsm8k=DIR --num_samples 16 --temperature 1  # pass@k
    nanochat-hf evaluate chat --checkpoints runs/d24/sft --tasks humaneval=DIR --allow_code_execution
    nanochat-hf evaluate chat --checkpoints HuggingFaceTB/SmolLM2-135M-Instruct --tasks arc-easy=DIR

Exams are scored by the logits of the answer's letters. Problems are scored by sampled answers, in which a nanochat
model may use its calculator. Other models get prompts in their own chat template. The result is written to
eval/chat.json in the checkpoint's folder.
"""
STRANGERS = """\
The stranger's list: does a chat model of the quickstart answer sensibly what a stranger types first?

    nanochat-hf evaluate strangers --checkpoints runs/quickstart/rl
    nanochat-hf evaluate strangers --checkpoints runs/quickstart/rl --stranger_sampling temperature=0.6 top_p=0.9

Messages and rules are in nanochat_hf/data/microworld/strangers_list.yaml; none of the judged messages is in training.
Answers are sampled as chats sample them. The result, with all conversations, is written to eval/strangers.json in the
checkpoint's folder.
"""
MODELS = "checkpoints run_dir stages output_dir redo revision trust_remote_code"
HARDWARE = "device dtype max_tokens max_length"
READING = "data text_column on_bad_file"
# Evaluation → its own settings. What another one has as well comes last.
OWN = {
    "bits_per_byte": f"{READING} max_documents",
    "core": f"core_bundle core_tasks max_per_task core_stages {READING}",
    "chat": "tasks split max_problems num_samples temperature top_k max_new_tokens allow_code_execution seed "
    "chat_stages batch_size",
    "strangers": "stranger_samples stranger_sampling stranger_stages seed",
}
TITLES = {"bits_per_byte": "bits per byte", "core": "CORE", "chat": "chat tasks", "strangers": "stranger's list"}
ALL = StageHelp(
    "evaluate",
    __doc__,
    "run_dir stages checkpoints evaluations core_bundle tasks redo device",
    {
        "models and results": MODELS,
        **{TITLES[name]: names.removesuffix(f" {READING}").removesuffix(" seed") for name, names in OWN.items()},
        "hardware": HARDWARE,
    },
)
ONE = {
    name: StageHelp(
        f"evaluate {name}",
        text,
        f"checkpoints run_dir {OWN[name]} redo device",
        {"models and results": MODELS, "hardware": HARDWARE},
        options=f"{MODELS} {OWN[name]} {HARDWARE}",
    )
    for name, text in (("bits_per_byte", BITS_PER_BYTE), ("core", CORE), ("chat", CHAT), ("strangers", STRANGERS))
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process: all evaluations, or the one that it names first.

    Raises:
        UserError: there is no such evaluation, or it cannot be run.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "stages"
    if name == "tokenizer":
        from nanochat_hf.stages import evaluate_tokenizer

        evaluate_tokenizer.main(argv)
    elif name == "stages":
        evaluate(argv, ALL)
    elif name in ONE:
        evaluate(argv, ONE[name], [name])
    else:
        raise UserError(f"there is no evaluation {name!r}; it is one of stages (all), {', '.join(ONE)} and tokenizer")


def evaluate(argv: Sequence[str], help: StageHelp, names: Sequence[str] | None = None) -> None:
    """Runs the evaluations called `names`, by default those of the setting `evaluations`."""
    config = settings.parse_stage("evaluation", EvaluationConfig, argv, help)
    names = list(names or config.evaluations)
    check_evaluation(config, names)

    from nanochat_hf.evals.runner import run_evaluations

    run_evaluations(config, names)


if __name__ == "__main__":
    settings.run_main(main)
