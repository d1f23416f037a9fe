"""The Space, started as a user starts it and called through its API."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS

APP = Path(__file__).parents[2] / "space" / "app.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny chat model with random weights, in Hugging Face format."""
    folder = tmp_path_factory.mktemp("checkpoint")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|bos|>", eos_token="<|assistant_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = NanochatHFConfig.from_depth(2, vocab_size=320, sequence_length=256, head_dim=16, aspect_ratio=16)
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        model.lm_head.weight[256:] = 0  # bytes only: a control token would end the answer early
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "app.log"
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        app = subprocess.Popen(
            [sys.executable, str(APP), str(checkpoint), "--port", str(port), "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        for _ in range(240):
            if app.poll() is not None:
                raise RuntimeError(log.read_text())
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        yield Client(f"http://127.0.0.1:{port}", verbose=False)
    finally:
        app.terminate()
        app.wait(30)


def test_answers_stream(client):
    job = client.submit("Hello", "", 1.0, 5, 1.0, 24, api_name="/chat")
    final = job.result(timeout=60)
    pieces = job.outputs()
    assert len(pieces) > 2 and pieces[-1] == final
    assert all(later.startswith(earlier) for earlier, later in zip(pieces, pieces[1:], strict=False))


def test_too_long_messages_are_refused(client):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="longer than 8,000 characters"):
        client.predict("x" * 9000, "", 1.0, 50, 1.0, 8, api_name="/chat")
    with pytest.raises(AppError, match="too long"):
        client.predict("x" * 1000, "", 1.0, 50, 1.0, 8, api_name="/chat")
    assert isinstance(client.predict("fine", "", 1.0, 50, 1.0, 8, api_name="/chat"), str)  # still alive


def test_the_page_shows_text_as_text(client):
    """Answers are plain text in the page: no Markdown, and so no HTML, is made of what a model writes."""
    config = client.config
    (chatbot,) = [part for part in config["components"] if part["type"] == "chatbot"]
    assert chatbot["props"]["render_markdown"] is False and chatbot["props"]["sanitize_html"] is True


def test_history_becomes_tool_parts_again(monkeypatch):
    monkeypatch.syspath_prepend(str(APP.parent))
    app = __import__("app")
    entry = {"role": "assistant", "content": [{"type": "text", "text": "So ⟨12*3 = 36⟩ it is, not ⟨1/0⟩ <b>."}]}
    assert app.read_message(entry) == {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "So "},
            {"type": "python", "text": "12*3"},
            {"type": "python_output", "text": "36"},
            {"type": "text", "text": " it is, not "},
            {"type": "python", "text": "1/0"},
            {"type": "text", "text": " <b>."},
        ],
    }
    assert app.read_message({"role": "user", "content": "⟨1 = 1⟩"}) == {"role": "user", "content": "⟨1 = 1⟩"}


def test_a_missing_model_is_one_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(APP.parent))
    monkeypatch.setattr(sys, "argv", ["app.py", "/no/such/model"])
    app = __import__("app")
    with pytest.raises(SystemExit) as stop:
        app.run_main(app.main)
    assert stop.value.code == 2
    assert re.fullmatch(r"error: .*no/such/model.*", capsys.readouterr().err.strip().splitlines()[-1])
