"""Fixtures that the tests of several packages share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder with numbers made by upstream."""
    return Path(os.environ.get("NANOCHAT_GOLDENS", Path(__file__).parent / "goldens"))
