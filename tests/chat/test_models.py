"""What the terminal and the page share: fitting a conversation, and checks of what comes from outside."""

import copy
import socket
import time

import pytest

from nanochat_hf.chat import LocalModel, read_message
from nanochat_hf.chat.models import clean
from nanochat_hf.generation.chat_format import ChatFormat
from nanochat_hf.settings import UserError, find_checkpoint


@pytest.fixture(scope="module")
def model(trained_run):
    return LocalModel(str(trained_run / "rl"), device="cpu")


def turn(question, answer, tokens=20):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, "token_ids": [5] * tokens}]


def test_five_short_turns_fit_in_256_tokens(model):
    """Half of the context was once reserved for the answer: then they did not."""
    assert model.context_length == 256
    system = {"role": "system", "content": "Be polite."}
    messages = [system]
    while True:
        asked = [*messages, {"role": "user", "content": "How do you spell tosar?"}]
        kept, dropped = model.fit(asked, 512)
        if dropped:
            break
        assert kept == asked
        messages += turn("How do you spell tosar?", "t-o-s-a-r", 12)
    assert (len(messages) - 1) // 2 >= 5
    assert kept[0] == system and kept[-1] == asked[-1] and len(kept) == len(asked) - dropped
    with pytest.raises(UserError, match="too long"):
        model.fit([{"role": "user", "content": "word " * 400}], 512)


def test_an_answer_keeps_its_tokens(model):
    question = {"role": "user", "content": "How do you spell tosar?"}
    *pieces, answer = model.answer([question], temperature=0.0, max_new_tokens=64)
    assert "".join(piece.text for piece in pieces) == answer.content == "t-o-s-a-r"
    assert model.tokenizer.decode(answer.token_ids) == "t-o-s-a-r<|assistant_end|>"
    assert answer.message()["token_ids"] == answer.token_ids and answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {"role": "tool", "content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": [{"type": "image", "text": "x"}]},
        {"role": "assistant", "content": [{"type": "text"}]},
        {"content": "x"},
    ],
)
def test_what_is_no_message_is_refused(wrong):
    with pytest.raises(UserError, match="not a conversation"):
        read_message(wrong)


def test_a_message_keeps_only_known_keys():
    message = {"role": "assistant", "content": "x", "token_ids": [1, 2], "metadata": {"evil": 1}}
    assert read_message(message) == {"role": "assistant", "content": "x", "token_ids": [1, 2]}
    assert "token_ids" not in read_message({**message, "token_ids": [1, "2"]})
    assert "token_ids" not in read_message({**message, "role": "user"})


def test_mistyped_paths_are_answered_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    with pytest.raises(UserError, match="there is no folder runs/quickstrat: runs holds quickstart"):
        find_checkpoint("runs/quickstrat")
    with socket.socket() as nobody:  # a port at which nobody listens stands for a Hub that cannot be reached
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        started = time.monotonic()
        with pytest.raises(UserError, match="the Hub cannot be reached"):
            find_checkpoint("some/model")
        assert time.monotonic() - started < 30  # it once took 50 s of retries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="switched off"):
        find_checkpoint("some/model")


def test_bytes_that_are_no_text_become_text():
    assert clean("a\udcffb") == "a\ufffdb"


def test_a_template_that_refuses_is_one_sentence(model):
    """Some templates have no system messages, or join text with a content that is a list of parts."""
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system here') }}"
        "{% endif %}{{ message['role'] + message['content'] }}{% endfor %}"
    )
    other = copy.copy(model)
    other.tokenizer = tokenizer
    question = {"role": "user", "content": "Hi"}
    assert other.fit([question], 16) == ([question], 0)
    for refused, complaint in (
        ([{"role": "system", "content": "Be brief."}, question], r"no system here\); leave the system message out"),
        (
            [question, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}, question],
            "change its messages",
        ),
    ):
        with pytest.raises(UserError, match=complaint):
            other.fit(refused, 16)
        with pytest.raises(UserError, match=complaint):
            next(iter(other.answer(refused)))
        with pytest.raises(UserError, match="refuses this conversation"):
            ChatFormat(tokenizer)._ids(refused)
