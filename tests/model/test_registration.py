"""Importing the package registers the model with transformers' Auto classes, and imports neither it nor torch."""

import subprocess
import sys

import pytest

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, NanochatHFModel

config = AutoConfig.for_model("nanochat_hf", num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=8)
assert type(config) is NanochatHFConfig
assert type(AutoModel.from_config(config)) is NanochatHFModel
assert type(AutoModelForCausalLM.from_config(config)) is NanochatHFForCausalLM
"""
ORDERS = {
    "package first": "import nanochat_hf",
    "Auto classes first": "from transformers import AutoModelForCausalLM; import nanochat_hf",
    "model first": "import nanochat_hf.model.modeling_nanochat_hf",
}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("first", ORDERS.values(), ids=ORDERS)
def test_the_auto_classes_know_the_model(first):
    run(first + CHECK)


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "12"]], ids=["help", "plan"])
def test_commands_without_a_model_import_no_torch(arguments):
    run(
        f"import sys; from nanochat_hf.cli.main import main; main({arguments})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
