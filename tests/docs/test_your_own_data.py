"""`docs/your-own-data.md` from beginning to end: a folder of text, then a file of chats; only sizes are smaller."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pages import ROOT, commands, section

PAGE = (ROOT / "docs" / "your-own-data.md").read_text()
SMALLER = {
    "--vocab_size": "300",
    "--depth": "1",
    "--sequence_length": "64",
    "--num_iterations": "3",
    "--number": "60",
    "--total_batch_size": "256",
    "--device_batch_size": "4",
}


def smaller(words: Sequence[str]) -> list[str]:
    """The words of a command, with the values in `SMALLER`."""
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def run_section(anchor: str, folder: Path, more: dict[str, list[str]]) -> list[str]:
    """Runs the commands of a section in `folder`, each with `more` options by its script; returns what they print."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = []
    for command in commands(section(PAGE, anchor)):
        words, into = command.words, None
        if ">" in words:
            words, into = words[: words.index(">")], words[-1]
        argv = [sys.executable, str(ROOT / command.program), *smaller(words), *more.get(command.program, [])]
        run = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        if into:
            (folder / into).write_text(run.stdout)
        said.append(run.stdout)
    return said


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder in which the page's first commands ran, and what they printed."""
    folder = tmp_path_factory.mktemp("mine")
    texts = folder / "my_texts"
    texts.mkdir()
    for name in ("a_garden", "test_pilots_of_the_air", "the_great_train_robbery"):
        (texts / f"{name}.txt").write_text("".join(f"Line {i} of {name} has no blank line. " for i in range(1200)))
    (texts / "cover.jpg").write_bytes(b"no text")
    more = {
        "training/tokenizer.py": ["--num_threads", "1"],
        "training/pretrain.py": "--num_threads 1 --aspect_ratio 32 --head_dim 32 --eval_tokens 512".split(),
    }
    return folder, run_section("text-from-a-folder-to-a-model", folder, more)


def test_a_folder_of_text_becomes_a_model(pretrained):
    folder, said = pretrained
    assert len(said) == 2 and (folder / "runs/mine/base/run.json").exists()
    for output in said:
        assert "left out (no known format): cover.jpg" in output
        table = [line.split() for line in output.splitlines()]
        train = next(row for row in table if "train" in row[:2])
        validation = next(row for row in table if row[:1] == ["validation"])
        assert train[2] == "2" and validation[1] == "1", "no title is a split"
        assert int(train[3].replace(",", "")) > 20, "text without blank lines gives many documents"


def test_a_file_of_chats_becomes_a_chat_model(pretrained):
    folder, _ = pretrained
    chat = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}
    (folder / "my_chats.jsonl").write_text(f"{json.dumps(chat)}\n" * 40)
    (folder / "my_questions.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Me."}) + "\n")
    more = {"training/sft.py": ["--num_threads", "1"], "evaluation/chat.py": ["--max_new_tokens", "8"]}
    trained, evaluated = run_section("your-own-chats", folder, more)
    assert "my_chats.jsonl: 40 conversations, format ShareGPT (from, value)" in trained
    assert "my_questions.jsonl: 1 conversations, format question and answer" in evaluated
    sft = folder / "runs/mine/sft"
    assert json.loads((sft / "run.json").read_text())["config"]["epochs"] == 3
    assert json.loads((sft / "eval/chat.json").read_text())["details"]["tasks"][0]["items"] == 1


def test_a_model_learns_who_it_is(pretrained):
    folder, _ = pretrained
    sft = folder / "runs/mine/sft"
    if not sft.exists():  # this test alone: any chat model will do
        shutil.copytree(folder / "runs/mine/base", sft)
        (folder / "my_chats.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Me."}) + "\n")
    _, made, trained = run_section("who-the-model-is", folder, {"training/sft.py": ["--num_threads", "1"]})
    assert "60 conversations written to identity.jsonl" in made
    assert "identity.jsonl: 60 conversations, format messages" in trained and "my_chats.jsonl: " in trained
    assert "Pip" in (folder / "identity.jsonl").read_text() and (folder / "runs/mine/named/run.json").exists()


def test_large_or_unsorted_text_becomes_shards_and_a_model(pretrained):
    folder, _ = pretrained
    more = {"training/pretrain.py": "--num_threads 1 --aspect_ratio 32 --head_dim 32 --eval_tokens 512".split()}
    sharded, trained = run_section("large-or-unsorted-text", folder, more)
    assert "training shards and 1 validation shard" in sharded and "shards" in trained
    assert (folder / "runs/mine/base-shards/run.json").exists()
