"""The README's Python example runs as it stands, on a checkpoint with random weights."""

import torch
from pages import FENCE, ROOT

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, tokenizer

EXAMPLE_FOLDER = "runs/quickstart/rl"


def test_the_example_of_using_a_checkpoint_runs(tmp_path, capsys):
    (example,) = (body for language, body in FENCE.findall((ROOT / "README.md").read_text()) if language == "python")
    assert EXAMPLE_FOLDER in example
    save_checkpoint(tmp_path / "rl")
    exec(compile(example.replace(EXAMPLE_FOLDER, str(tmp_path / "rl")), "README.md", "exec"), {})
    assert "<|user_start|>Who are you?<|user_end|><|assistant_start|>" in capsys.readouterr().out


def save_checkpoint(folder) -> None:
    chat_tokenizer = tokenizer.train(["Hello! Who are you? I am a model of two layers. "] * 20, 290)
    torch.manual_seed(0)
    ids = {name: getattr(chat_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = NanochatHFConfig.from_depth(2, vocab_size=320, sequence_length=128, head_dim=16, aspect_ratio=16, **ids)
    NanochatHFForCausalLM(config).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
