"""A tiny random model in double precision, a byte tokenizer and a small CORE bundle with all kinds of tasks."""

import csv
import json
import random

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.5,  # large enough that predictions depend on the context
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle of three tasks; a bigram-like text makes greedy continuations sometimes right."""
    folder = tmp_path_factory.mktemp("bundle")
    rng = random.Random(5)
    words = ["red", "blue", "tall", "small", "river", "stone", "bird", "cloud", "naïve", "日本"]

    def text(count):
        return " ".join(rng.choice(words) for _ in range(count))

    data = {
        "choice": [
            {
                "query": f"Q: {text(rng.randint(2, 9))}",
                "choices": [text(3) for _ in range(3)],
                "gold": rng.randrange(3),
            }
            for _ in range(23)
        ],
        "schema": [
            {"context_options": [text(4), text(2)], "continuation": text(4), "gold": rng.randrange(2)}
            for _ in range(17)
        ],
        "language": [{"context": f" {text(5)} \n", "continuation": rng.choice("abcdefgh")} for _ in range(29)],
    }
    kinds = {"choice": "multiple_choice", "schema": "schema", "language": "language_modeling"}
    shots = {"choice": 3, "schema": 0, "language": 2}
    tasks = []
    (folder / "eval_data" / "sub").mkdir(parents=True)
    for label, items in data.items():
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / "eval_data" / "sub" / f"{label}.jsonl").write_text(lines, encoding="utf-8")
        entry = {"label": label, "dataset_uri": f"sub/{label}.jsonl", "num_fewshot": [shots[label]]}
        entry |= {"icl_task_type": kinds[label]} | ({"continuation_delimiter": "\nA: "} if label == "choice" else {})
        tasks.append(entry)
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": tasks}))
    with open(folder / "eval_meta_data.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Eval Task", "Task Category", "Random baseline"])
        rows.writerows([["choice", "x", "62"], ["schema", "x", "50"], ["language", "x", "0"]])
    return folder
