"""The depth dial against upstream's own figures."""

import json
import os
from pathlib import Path

import pytest

from nanochat_hf.scaling import depth_dial

GOLDENS = Path(os.environ.get("NANOCHAT_GOLDENS", Path(__file__).parents[1] / "goldens"))
ROWS = [row for path in sorted(GOLDENS.glob("scaling_modern*.json")) for row in json.loads(path.read_text())]


def test_there_are_figures():
    assert ROWS, f"no scaling_modern*.json in {GOLDENS}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"d{row['depth']}-ratio{row['ratio']}")
def test_modern(row):
    dial = depth_dial(row["depth"], param_data_ratio=row["ratio"])
    assert {name: getattr(dial, name) for name in row} == row
