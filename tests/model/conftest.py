"""The model and the text that these tests share."""

import pytest
import torch
from tiny_models import randomized, tiny_config

from nanochat_hf import NanochatHFForCausalLM


@pytest.fixture(scope="module")
def model() -> NanochatHFForCausalLM:
    """The modern model; tests must not change it."""
    return randomized(tiny_config())


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """[3, 90] token ids: ten windows, and more than the trained length."""
    return torch.randint(0, 128, (3, 90), generator=torch.Generator().manual_seed(1))
