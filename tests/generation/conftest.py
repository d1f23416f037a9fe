"""A tiny model and a byte-level tokenizer: ids 0-255 are bytes, nanochat's control tokens follow."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedTokenizerFast

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.generation import graphed_decoder
from nanochat_hf.tokenizer import CHAT_TEMPLATE

CONTROL = [
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
]


@pytest.fixture(scope="session")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(CONTROL)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|assistant_end|>", pad_token="<|bos|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_model(seed=0, **fields):
    """Random weights big enough that every feature and every position matters to the next token."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=320, sequence_length=192, head_dim=16, aspect_ratio=16, sliding_window=9)
    model = NanochatHFForCausalLM(NanochatHFConfig.from_depth(4, **{**shape, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
        model.lm_head.weight.mul_(10)
        if model.config.smear:
            model.model.smear_lambda.fill_(0.5)
    return model


@pytest.fixture(scope="session")
def make_model():
    return tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


class Scripted(torch.nn.Module):
    """A model that says fixed tokens: in each row, the next token of the script that the prompt's first token names.

    The position in the script is the number of tokens read, so a forced token replaces a token of the script.
    """

    def __init__(self, scripts, vocab_size=320):
        super().__init__()
        from transformers import LlamaConfig

        self.config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=256,
        )
        self.scripts, self.vocab_size = scripts, vocab_size
        self.device = torch.device("cpu")
        self.seen = []

    def forward(self, input_ids, position_ids, past_key_values, **_):
        states = input_ids[:, None, :, None].float()  # the cache remembers the tokens themselves
        keys, _ = past_key_values.update(states, states, 0)
        logits = torch.full((len(input_ids), 1, self.vocab_size), -50.0)
        for row, tokens in enumerate(keys[:, 0, :, 0].long().tolist()):
            script = self.scripts[tokens[-1 - int(position_ids[row, -1])]]  # the prompt's first token names the script
            step = int(position_ids[row, -1])
            logits[row, 0, script[min(step, len(script) - 1)]] = 50.0
            self.seen.append(tokens)
        return type("Output", (), {"logits": logits})()


@pytest.fixture
def scripted():
    return Scripted


class Recorder(TorchDispatchMode):
    """Records operations. Unlike CUDA, it also runs them."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, outputs))
        return outputs

    def replay(self):
        """Runs all operations again; returns the new results by the identity of the recorded ones."""
        results = {}

        def current(value):
            return results.get(id(value), value)

        for func, args, kwargs, recorded in self.operations:
            outputs = func(*tree_map(current, args), **tree_map(current, kwargs))
            pairs = (
                zip(recorded, outputs, strict=True) if isinstance(recorded, tuple | list) else [(recorded, outputs)]
            )
            results.update({id(old): new for old, new in pairs})
        return results


@pytest.fixture
def captures(monkeypatch):
    """Lets `capture` of CUDA graphs record on the CPU; returns the list of recorders."""
    made = []

    def capture(function):
        decoder = function.__self__
        named = [getattr(decoder, name, None) for name in ("next_column", "previous", "all_previous")]
        state = [*decoder.keys, *decoder.values, *named]
        before = [None if tensor is None else tensor.clone() for tensor in state]
        recorder = Recorder()
        with recorder:
            function()
        for tensor, old in zip(state, before, strict=True):
            if tensor is not None:
                tensor.copy_(old)
        made.append(recorder)
        logits = decoder.logits

        def replay():
            logits.copy_(recorder.replay()[id(logits)])

        return replay

    monkeypatch.setattr(graphed_decoder, "capture", capture)
    return made
