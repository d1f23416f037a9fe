"""A run of a tiny model that has learned a handful of the microworld's questions by heart, for chats in tests."""

import json
from pathlib import Path
from typing import Any

import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, settings, tasks, tokenizer
from nanochat_hf.tokenizer.template import render_conversation

TASKS = ("identity", "problems", "chat", "spelling", "code")
LONG = {"question": "Count for me.", "answer": "one two three four five six seven eight nine ten. " * 4}
STEPS = 160


def examples() -> dict[str, dict[str, Any]]:
    """Task name → its first example of one question that is no longer than a suggestion may be."""
    found = {}
    for name in TASKS:
        task, _ = tasks.load(f"microworld-{name}@40", "test")
        fitting = (one for one in task if [message["role"] for message in one["messages"]] == ["user", "assistant"])
        found[f"microworld-{name}"] = next(one for one in fitting if len(one["messages"][0]["content"]) <= 160)
    return found


def make_run(folder: Path) -> Path:
    """Trains the run: base/ knows nothing, rl/ knows the examples. Returns its folder, with report and plots."""
    learned = examples()
    conversations = [one["messages"] for one in learned.values()]
    conversations.append(
        [{"role": "user", "content": LONG["question"]}, {"role": "assistant", "content": LONG["answer"]}]
    )
    problem, spelling, talk = (learned[f"microworld-{name}"]["messages"] for name in ("problems", "spelling", "chat"))
    conversations += [[*problem, *spelling], [*problem, *talk], [*spelling, *problem]]
    texts = [str(message["content"]) for messages in conversations for message in messages]
    words = tokenizer.train(texts * 5, 420)
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(2, vocab_size=448, sequence_length=256, head_dim=32, aspect_ratio=32)
    config.bos_token_id, config.eos_token_id = words.bos_token_id, words.eos_token_id
    config.pad_token_id = words.pad_token_id
    model = NanochatHFForCausalLM(config)
    # Chats sample. At the usual 0.6 one answer of 200 is not as learned, at 0.2 none of a million.
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.2
    for name in ("base", "rl"):
        if name == "rl":
            learn(model, words, conversations)
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
        names = [f"microworld-{task}" for task in TASKS] if name == "rl" else []
        settings.save_run(folder / name, "rl" if names else "pretrain", {"tasks": names}, seconds=1.0, history=[])
    samples = {
        name: [{"index": 0, "prompt": one["messages"][:-1], "answer": "as learned", "score": 1.0}]
        for name, one in learned.items()
    }
    shares = {"accuracy": 1.0, "accuracy_low": 0.5, "accuracy_high": 1.0, "baseline": 0.0, "centered": 1.0}
    rows = [{"task": name, "kind": "generative", "items": 1, **shares} for name in learned]
    result = {"evaluation": "chat", "metrics": {"chatcore": 1.0}, "details": {"tasks": rows, "samples": samples}}
    settings.write_json(folder / "rl" / "eval" / "chat.json", {**result, "seconds": 1.0, "config": {}})
    (folder / "plots").mkdir()
    _picture(folder / "plots" / "loss.png")
    (folder / "report.md").write_text(
        "# Report of a tiny run\n\n## Results\n\n| metric | RL |\n| --- | ---: |\n| ChatCORE | 1.0000 |\n\n"
        "![Training loss](plots/loss.png)\n\n![Not there](../../etc/passwd.png)\n\n## Samples\n\nThe end.\n",
        encoding="utf-8",
    )
    return folder


def learn(model: Any, words: Any, conversations: list) -> None:
    rows = [render_conversation(words, messages)[0] for messages in conversations]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), words.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(tokens)] = torch.tensor(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2.5 * (1 - step / STEPS))
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _picture(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([3, 2, 1])
    figure.savefig(path)


if __name__ == "__main__":
    import sys

    print(json.dumps(examples(), indent=1)[:3000])
    make_run(Path(sys.argv[1]))
