"""The guides in `docs/` work: each is followed from first to last command on a small model that is made here."""

import json
import re
from pathlib import Path

import pytest
import torch
from guides import Ran, read_guide, run_guide, score
from trained_chat import learn

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, tokenizer

NANO = [("Who are you?", "I am Nano, a small chat model."), ("What is your name?", "My name is Nano.")]


@pytest.fixture
def small_model(tmp_path, monkeypatch):
    """Makes `runs/quickstart/rl` in an empty current folder: a small model that knows `keep.jsonl` and its name.

    Takes more text for its tokenizer, so that the guide's words are single tokens.
    """
    monkeypatch.chdir(tmp_path)

    def make(page: str, more_text: str) -> Path:
        files, _ = read_guide(page)
        kept = [json.loads(line) for line in files["keep.jsonl"].splitlines()]
        known = [(row["question"], row["answer"]) for row in kept] + NANO
        words = tokenizer.train([" ".join(turn) for turn in known] * 5 + [more_text] * 5, 500)
        torch.manual_seed(0)
        config = NanochatHFConfig.from_depth(2, vocab_size=512, sequence_length=256, head_dim=32, aspect_ratio=32)
        config.bos_token_id, config.eos_token_id = words.bos_token_id, words.eos_token_id
        config.pad_token_id = words.pad_token_id
        model = NanochatHFForCausalLM(config)
        roles = ("user", "assistant")
        learn(model, words, [[{"role": r, "content": t} for r, t in zip(roles, turn, strict=True)] for turn in known])
        folder = tmp_path / "runs" / "quickstart" / "rl"
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return make


def answers(ran: list[Ran], checkpoint: str) -> dict[str, str]:
    """Question → answer of the guide's `nanochat-hf chat` commands with one checkpoint."""
    found = {}
    for one in ran:
        if one.command.startswith(f"nanochat-hf chat {checkpoint} "):
            found[re.search(r'-p "([^"]+)"', one.command)[1]] = one.output.strip()
    return found


def test_a_model_gets_a_personality(small_model):
    files, _ = read_guide("personality.md")
    name = re.search(r"^name: (\w+)", files["facts.yml"], re.MULTILINE)[1]
    small_model("personality.md", files["facts.yml"])
    extra = {"sft": "--num_threads 1 --init_lr_frac 1.0 --momentum_warmup_steps 20", "chat": "--device cpu"}
    ran = run_guide("personality.md", extra)
    before, after = answers(ran, "runs/quickstart/rl"), answers(ran, "runs/bosko/sft")
    asked = [question for question, answer in before.items() if "Nano" in answer]
    assert asked and not any(name in answer for answer in before.values())
    assert any(name in after[question] for question in asked), after  # a model this small mixes up what it says
    assert not any("Nano" in answer for answer in after.values())
    assert score("runs/quickstart/rl", "conversations") == 1.0
    # The toy of this test keeps two of five answers; the page has the figures of a real model.
    assert score("runs/bosko/sft", "conversations") >= 0.2, "it has forgotten what it knew"


def test_a_model_learns_new_skills(small_model):
    files, _ = read_guide("new-skill.md")
    words = " ".join(re.findall(r"[a-z]+", files["my_tasks.py"].split("WORDS = (")[1].split(")")[0]))
    questions = " ".join(re.findall(r'"([^"]*\?)"', files["my_tasks.py"]))
    small_model("new-skill.md", f"{words} {questions} comes first. .count('a') 1 2 3 4 ####")
    learning = "--num_threads 1 --epochs 3 --init_lr_frac 1.0 --momentum_warmup_steps 20"
    run_guide("new-skill.md", {"sft": learning, "chat": "--device cpu"})
    assert score("runs/quickstart/rl", "count-letters") < 0.1
    for folder in ("runs/skill/sft", "runs/skill/rl"):
        assert score(folder, "count-letters") > 0.5
        assert score(folder, "conversations") >= 0.6, "it has forgotten what it knew"
    assert score("runs/skill/second", "alphabet-order") > 0.7
