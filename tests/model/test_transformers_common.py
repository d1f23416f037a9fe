"""transformers' own tests of any model, on ours. Its wheel leaves them out, its source distribution has them:

    pip install parameterized
    pip download --no-deps --no-binary :all: transformers==5.23.0
    tar xzf transformers-*.tar.gz
    NANOCHAT_TRANSFORMERS_TESTS=$(echo transformers-*/tests) pytest tests/model/test_transformers_common.py

`test_common.py` has the most of what they check, and always runs.
"""

import importlib
import os
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch
from tiny_models import classic_fields, tiny_config
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from nanochat_hf import NanochatHFForCausalLM, NanochatHFModel

FOLDER = os.environ.get("NANOCHAT_TRANSFORMERS_TESTS")
if not FOLDER:
    pytest.skip("NANOCHAT_TRANSFORMERS_TESTS does not say where they are", allow_module_level=True)


def load_mixin() -> type:
    """The source distribution lacks two files that the module imports; their tests are not run here."""
    for name, path in {"common": FOLDER, "common.exporters": "exporters", "common.generation": "generation"}.items():
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [str(Path(FOLDER) / path) if name != "common" else str(Path(FOLDER))]
    lacking = {
        "common.exporters.test_export": "ExportTesterMixin",
        "common.generation.test_utils": "GenerationTesterMixin",
    }
    for name, mixin in lacking.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], mixin, type(mixin, (), {}))
    return importlib.import_module("common.test_modeling_common").ModelTesterMixin


class Shape:
    """What the tests ask of a model's tester."""

    batch_size, seq_length, vocab_size, is_training = 5, 9, 128, True
    hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim = 64, 2, 4, 2, 16

    def __init__(self, fields: dict):
        self.fields = fields

    def get_config(self):
        return tiny_config(num_hidden_layers=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        tokens = torch.randint(0, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


class Ours(load_mixin()):
    all_model_classes = (NanochatHFModel, NanochatHFForCausalLM)

    skipped = {"test_generation_tester_mixin_inheritance": "its tests are not in the source distribution"}
    skipped |= {"test_model_rope_scaling_frequencies": "it wants angles without a dimension for the heads"}

    @pytest.fixture(autouse=True)
    def prepared(self, monkeypatch):
        """The tests ask transformers' tables, which hold the names of its own classes, whether a model takes labels;
        and a new model's zeros would make many of them pass whatever the layers did."""
        if reason := self.skipped.get(self._testMethodName):
            pytest.skip(reason)
        monkeypatch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "nanochat_hf", "NanochatHFModel")
        monkeypatch.setitem(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "nanochat_hf", "NanochatHFForCausalLM")
        monkeypatch.setattr(init, "zeros_", lambda tensor: init.normal_(tensor, std=0.1))


class TestModern(Ours, unittest.TestCase):
    needs_ids = "value embeddings need the ids"
    skipped = Ours.skipped | dict.fromkeys(["test_inputs_embeds", "test_inputs_embeds_matches_input_ids"], needs_ids)

    def setUp(self):
        self.model_tester = Shape({})


class TestClassic(Ours, unittest.TestCase):
    later = "the class names modules that only modern models have"
    skipped = Ours.skipped | dict.fromkeys(["test_keep_in_fp32_modules_exist", "test_tp_plan_matches_params"], later)

    def setUp(self):
        self.model_tester = Shape(classic_fields())
