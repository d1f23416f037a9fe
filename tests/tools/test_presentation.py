"""One way of showing a tool call: terminal, page, report and card."""

import random

import pytest

from nanochat_hf.tools.presentation import TextWriter, flowing_text, joined, plain_text, said_text, tool_calls

PARTS = [
    {"type": "text", "text": "Ula has "},
    {"type": "python", "text": "8+26"},
    {"type": "python_output", "text": "34"},
    {"type": "text", "text": "34 pears.\nMara has "},
    {"type": "python", "text": "34*3"},
    {"type": "python_output", "text": "102"},
    {"type": "text", "text": "102 pears.\n#### 102"},
]


def part(kind, text):
    return {"type": kind, "text": text}


def test_the_result_stands_once_and_the_answer_is_marked():
    assert plain_text(PARTS) == "Ula has ⟨8+26 = 34⟩ pears.\nMara has ⟨34*3 = 102⟩ pears.\nAnswer: 102"
    assert flowing_text(PARTS) == "Ula has 34 pears.\nMara has 102 pears.\n\n**Answer: 102**"
    assert [(call.call, call.result) for call in tool_calls(PARTS)] == [("8+26", "34"), ("34*3", "102")]
    assert said_text(PARTS) == "Ula has 34 pears.\nMara has 102 pears.\n#### 102"


@pytest.mark.parametrize(
    ("parts", "plain", "flowing"),
    [
        # a result that the model did not repeat, and one that begins another number
        ([part("python", "1+2"), part("python_output", "3"), part("text", " it is")], "⟨1+2 = 3⟩ it is", "3 it is"),
        ([part("python", "1+2"), part("python_output", "3"), part("text", "34")], "⟨1+2 = 3⟩34", "34"),
        ([part("python", "1+2"), part("python_output", "3"), part("text", "3.5 m")], "⟨1+2 = 3⟩3.5 m", "3.5 m"),
        ([part("python", "1+2"), part("python_output", "3"), part("text", "3.")], "⟨1+2 = 3⟩.", "3."),
        # a refused call, a call at the end, an output without a call
        ([part("python", "1/0"), part("text", "?")], "⟨1/0⟩?", "?"),
        ([part("text", "a "), part("python", "1/0")], "a ⟨1/0⟩", "a "),
        ([part("python_output", "5")], "⟨ = 5⟩", ""),
        # marks only count at the beginning of a line
        ([part("text", "see #### 3")], "see #### 3", "see #### 3"),
        ([part("text", "#### 3")], "Answer: 3", "**Answer: 3**"),
    ],
)
def test_odd_turns(parts, plain, flowing):
    assert plain_text(parts) == plain
    assert flowing_text(parts).strip() == flowing.strip()


def test_pieces_may_be_cut_anywhere():
    rng = random.Random(0)
    for _ in range(300):
        writer, shown = TextWriter(), []
        for one in PARTS:
            text = one["text"]
            while text:
                size = rng.randint(1, len(text))
                shown += writer.add(one["type"], text[:size])
                text = text[size:]
        shown += writer.end()
        assert joined(shown) == plain_text(PARTS)
        assert {span.style for span in shown} == {"text", "tool", "answer"}


def test_plain_text_stays_plain():
    assert plain_text("Hello\nyou") == flowing_text("Hello\nyou") == "Hello\nyou"
    assert plain_text(None) == ""
