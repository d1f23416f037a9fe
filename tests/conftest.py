"""Fixtures that the tests of several packages share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder with numbers made by upstream."""
    return Path(os.environ.get("NANOCHAT_GOLDENS", Path(__file__).parent / "goldens"))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run whose rl/ has learned a few of the microworld's questions by heart; base/ knows nothing."""
    from trained_chat import make_run

    return make_run(tmp_path_factory.mktemp("runs") / "tiny")
