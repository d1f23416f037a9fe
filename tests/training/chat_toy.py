"""A base model of the toy kind and the means to run a stage's `main` in this process (importing TRL takes 20 s)."""

import importlib.util
import sys
from pathlib import Path

import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, tokenizer
from nanochat_hf.tasks.base import Task

TRAINING = Path(__file__).parents[2] / "training"
TEXTS = [
    "What is 12*3? It is 36. ",
    "Hello! Who are you? I am nanochat. ",
    "Anna has 4 apples and gives 2 away. ",
] * 20


class ShortAnswers(Task):
    """Toy problems of different lengths: the shorter an answer, the better."""

    name = "short-answers"

    def example(self, row):
        question = "Hello! " * (1 + row % 3)
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]}

    def score(self, example, completion):
        return max(0.0, 1.0 - len(completion) / 20)


def make_base(folder: Path, sequence_length: int = 256, preset: str = "modern", texts: list[str] = TEXTS) -> Path:
    chat_tokenizer = tokenizer.train(texts, 300)
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        2, vocab_size=320, sequence_length=sequence_length, head_dim=16, aspect_ratio=16, preset=preset
    )
    config.bos_token_id, config.eos_token_id = chat_tokenizer.bos_token_id, chat_tokenizer.eos_token_id
    config.pad_token_id = chat_tokenizer.pad_token_id
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():  # a fresh model's head and output projections are zero: give the gradient a way through
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


def run_stage(stage: str, *arguments) -> None:
    """Runs `training/<stage>.py` with a command line, in this process."""
    spec = importlib.util.spec_from_file_location(f"stage_{stage}", TRAINING / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    before = sys.argv
    sys.argv = [f"{stage}.py", *map(str, arguments)]
    try:
        spec.loader.exec_module(module)
        module.main()
    finally:
        sys.argv = before


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return NanochatHFForCausalLM.from_pretrained(folder).state_dict()
