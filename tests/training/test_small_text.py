"""Pretraining on little text, as a new user does: many passes over 50 documents, and nothing stops the run."""

import json
import random
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.data.loader import PackedLoader
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import load_run
from nanochat_hf.stages.pretrain import main

SHAPE = ["--depth", "2", "--aspect_ratio", "32", "--head_dim", "32", "--sequence_length", "64"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """50 documents for training in two files, each with a number of its own in every sentence, and a tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    words = open_documents("microworld").next_batch(400)[-1].split()
    rng = random.Random(0)
    documents = [
        " ".join(f"{number} {rng.choice(words)} {rng.choice(words)}." for _ in range(rng.randint(4, 60)))
        for number in range(100, 150)
    ]
    for name, own in (("a", documents[:25]), ("b", documents[25:]), ("c", documents[:5])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in own))
    tokenizers.train(documents, 300).save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("packing", ["best_fit", "keep_tails"])
def test_many_passes_over_fifty_documents_end_below_the_guard(text, packing, tmp_path, capsys):
    options = ["--data", f"{text}/[abc].jsonl", "--tokenizer", str(text / "tokenizer"), "--packing", packing]
    options += ["--total_batch_size", "1024", "--num_iterations", "150", "--eval_every", "-1", "--log_every", "1"]
    main([*SHAPE, *options, "--output_dir", str(tmp_path / packing)])
    run = load_run(tmp_path / packing)
    losses = [row["loss"] for row in run["history"] if "loss" in row]
    assert len(losses) == 150 and losses[-1] < 0.5 * losses[0]
    assert all(b - a < 2.0 for a, b in zip(losses, losses[1:], strict=False)), "no spike"
    assert load_file(tmp_path / packing / "model.safetensors")["model.backout_lambda"].item() <= 0.9
    said = capsys.readouterr().out
    assert "backout's scalar is at most 0.9" in said and "is seen" in said

    tokenizer = AutoTokenizer.from_pretrained(text / "tokenizer")
    loader = PackedLoader(f"{text}/[abc].jsonl", tokenizer, batch_size=16, sequence_length=64, packing=packing)
    rows = torch.cat([next(loader)["input_ids"] for _ in range(150)])
    assert loader.epoch >= 15
    loader.close()
    for row in rows.tolist():
        parts = tokenizer.decode(row).split(tokenizer.bos_token)[1:]
        numbers = [number for part in parts for number in set(re.findall(r"\b1[0-4]\d\b", part))]
        assert len(set(numbers)) == len(numbers), "no row holds one document twice"


def test_a_depth_that_wants_more_text_than_there_is_reads_it_four_times_and_says_so(text, tmp_path, capsys):
    options = ["--data", f"{text}/[abc].jsonl", "--tokenizer", str(text / "tokenizer"), "--dry_run", "true"]
    main([*SHAPE, *options, "--output_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(
        r"Give more text, or a smaller --depth, or ask for all \d+ times with --param_data_ratio 12", said
    )
    assert "preset: small, for" in said and "(--preset modern" not in said, "whose batch would be the same"
    assert re.search(r"/\[abc\]\.jsonl +train +2 +50 ", said), "the table that a run prints"
    assert re.search(r"The run reads it (3\.\d|4\.0) times", said)
    main([*SHAPE, *options, "--output_dir", str(tmp_path), "--param_data_ratio", "12"])
    assert "The run reads it" not in capsys.readouterr().out
    main([*SHAPE, *options, "--output_dir", str(tmp_path), "--preset", "classic"])
    said = capsys.readouterr().out
    assert "The run reads it" not in said and "are asked for: each is seen" in said


def test_of_several_sources_the_one_that_limits_the_run_is_named(text, tmp_path, capsys):
    options = ["--data", str(text / "a.jsonl"), str(text / "c.jsonl"), "--tokenizer", str(text / "tokenizer")]
    main([*SHAPE, *options, "--dry_run", "--output_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"until {text / 'c.jsonl'} with its share of 50% begins again, the text fills" in said
    assert "Give that source more text or a smaller share, " in said


def test_a_run_of_few_steps_warms_up_in_a_fifth_of_them_and_ends_with_its_last_loss(text, tmp_path, capsys):
    """A text so short that a batch of one row leaves fewer steps than the warm-up has."""
    (tmp_path / "a.txt").write_text("Five notes about the sea, the wind and the boat that nobody has seen. " * 12)
    options = ["--data", str(tmp_path / "a.txt"), "--tokenizer", str(text / "tokenizer"), "--eval_every", "0"]
    options += ["--output_dir", str(tmp_path / "run"), "--log_every", "5"]
    main([*SHAPE, *options])
    assert "a shorter --sequence_length for more than" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    rows = [row for row in run["history"] if "loss" in row]
    steps = run["dial"]["num_iterations"]
    assert 8 < steps < 40 and steps % 5 and rows[-1]["step"] == steps
    assert run["metrics"]["loss"] == rows[-1]["loss"] < rows[0]["loss"] - 0.5
