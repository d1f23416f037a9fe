"""`docs/your-own-data.md` from beginning to end, with a folder of text; only the sizes are smaller."""

import os
import subprocess
import sys
from collections.abc import Sequence

from pages import ROOT, commands, section

PAGE = (ROOT / "docs" / "your-own-data.md").read_text()
SMALLER = {
    "--vocab_size": "300",
    "--depth": "1",
    "--sequence_length": "64",
    "--num_iterations": "3",
    "--total_batch_size": "256",
    "--device_batch_size": "4",
}


def smaller(words: Sequence[str]) -> list[str]:
    """The words of a command, with the values in `SMALLER`."""
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def test_a_folder_of_text_becomes_a_model(tmp_path):
    texts = tmp_path / "my_texts"
    texts.mkdir()
    for name in ("a_garden", "test_pilots_of_the_air", "the_great_train_robbery"):
        (texts / f"{name}.txt").write_text("".join(f"Line {i} of {name} has no blank line. " for i in range(1200)))
    (texts / "cover.jpg").write_bytes(b"no text")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = []
    for command in commands(section(PAGE, "text-from-a-folder-to-a-model")):
        argv = [sys.executable, str(ROOT / command.program), *smaller(command.words), "--num_threads", "1"]
        if "pretrain" in command.program:
            argv += ["--aspect_ratio", "32", "--head_dim", "32", "--eval_tokens", "512"]
        run = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        said.append(run.stdout)
    assert len(said) == 2 and (tmp_path / "runs/mine/base/run.json").exists()
    for output in said:
        assert "left out (no known format): cover.jpg" in output
        table = [line.split() for line in output.splitlines()]
        train = next(row for row in table if "train" in row[:2])
        validation = next(row for row in table if row[:1] == ["validation"])
        assert train[2] == "2" and validation[1] == "1", "no title is a split"
        assert int(train[3].replace(",", "")) > 20, "text without blank lines gives many documents"
