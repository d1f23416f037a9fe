"""What is cut, left out and masked while conversations become rows is counted and printed."""

import signal

import pytest

from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.tokenizer import render_conversation
from nanochat_hf.trainers.chat_rows import make_rows
from nanochat_hf.trainers.row_counts import RowCounts, report_left_over, report_share


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(["Hello! Who are you? I am nanochat. What is 12*3? It is 36. "] * 20, 280)


def conversation(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


SHORT, LONG_ANSWER, LONG_QUESTION = conversation("q", "a"), conversation("q", "a" * 90), conversation("q" * 90, "a")


def test_counts_are_those_of_the_rows(tokenizer, capsys):
    task = [SHORT] * 7 + [LONG_ANSWER] * 2 + [LONG_QUESTION]
    rendered = [render_conversation(tokenizer, example["messages"]) for example in task]
    row_length = 33
    rows = make_rows([(task, 1)], tokenizer, row_length, train_on="assistant")
    said = capsys.readouterr()
    tokens = sum(len(ids) for ids, _ in rendered)
    trained = int((rows["labels"][:, 1:] != -100).sum())
    kept = sum(min(len(ids), row_length) for ids, _ in rendered[:-1])
    assert f"packing: 10 conversations, {tokens} tokens; {kept} in rows, {trained} of them trained on" in said.out
    assert f"the others masked ({1 - trained / kept:.1%})" in said.out
    lost = 1 - trained / sum(sum(mask) for _, mask in rendered)
    warnings = said.err.replace("\r", "\n").split("\n")
    assert (
        f"warning: packing: 3 of 10 (30.0%) conversations are longer than 32 tokens and are cut; {lost:.1%} of the "
        "tokens to train on are lost; raise --max_seq_len, up to the model's context, or shorten the conversations"
    ) in warnings
    assert any("1 of 10 (10.0%) conversations are left out: no answer begins within 32 tokens" in w for w in warnings)
    assert not any("nothing in them" in warning for warning in warnings)


def test_nothing_is_said_of_what_fits(tokenizer, capsys):
    rows = make_rows([([SHORT] * 5, 1)], tokenizer, 33, train_on="all")
    said = capsys.readouterr()
    assert "warning" not in said.err and "cut" not in said.out and "left out" not in said.out
    kept = int((rows["labels"] != -100).sum())
    assert f"packing: 5 conversations, {kept} tokens; {kept} in rows, {kept - 5} of them trained on" in said.out


def test_conversations_without_any_answer_are_counted(tokenizer, capsys):
    silent = {"messages": [{"role": "user", "content": "q"}]}
    make_rows([([SHORT] * 3 + [silent], 1)], tokenizer, 33, train_on="assistant")
    assert "1 of 4 (25.0%) conversations are left out: nothing in them is trained on" in capsys.readouterr().err


def test_workers_count_as_one_process_does(tokenizer, capsys):
    task = [SHORT, LONG_ANSWER] * 700
    for workers in (1, 2):
        make_rows([(task, 1)], tokenizer, 33, train_on="assistant", num_workers=workers)
    one, two = capsys.readouterr().out.splitlines()
    assert one == two and "1,400 conversations" in one


@pytest.mark.parametrize("rows", [None, 5])
def test_workers_end_where_the_parent_handles_signals(tokenizer, rows):
    """Also those that are stopped because there are enough rows."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        made = make_rows([([SHORT] * 3000, 1)], tokenizer, 33, train_on="assistant", num_rows=rows, num_workers=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(made["input_ids"]) == (rows or 750)


def test_a_small_share_is_a_line_and_a_large_one_a_warning(capsys):
    report_share("packing", 0, 100, "are cut", "raise it")
    report_left_over(100, 100, "rows", "total_batch_size")
    RowCounts(10, "packing").report()
    assert capsys.readouterr() == ("", "")
    report_share("packing", 5, 100, "are cut", "raise it")
    report_left_over(100, 94, "rows", "total_batch_size")
    out, err = capsys.readouterr()
    assert out == "packing: 5 of 100 (5.0%) are cut\n"
    assert err == (
        "warning: last step: 6 of 100 (6.0%) rows do not fill a step and are left out; lower --total_batch_size\n"
    )
