"""The formats of chat data: what each row becomes, what is counted, and what is refused with which sentence."""

import json
import random

import pytest

from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import load
from nanochat_hf.tasks.formats import NotAConversation, Notes, rows_of_value, to_conversation, to_preference
from nanochat_hf.tokenizer import render_conversation


def user(text):
    return {"role": "user", "content": text}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(text):
    return {"role": "system", "content": text}


def said(who, text):
    return {"from": who, "value": text}


def part(kind, text):
    return {"type": kind, "text": text}


def call(name, arguments, identity="c1"):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


HI = [user("Hi"), assistant("Hello.")]
GOOD = [user("Which?"), assistant("This.")]


@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        (HI, "messages (role, content)"),
        ({"messages": HI}, "messages (role, content)"),
        ({"messages": HI, "prompt": None, "chosen": None}, "messages (role, content)"),
        ({"messages": json.dumps(HI)}, "messages (role, content)"),
        ({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello."]}}, "messages (role, content)"),
        ({"messages": [{**turn, "from": None, "value": None} for turn in HI]}, "messages (role, content)"),
        ({"conversations": [said("human", "Hi"), said("gpt", "Hello.")]}, "ShareGPT (from, value)"),
        ({"id": 1, "conversation": [said("Human", "Hi"), said("GPT", "Hello.")]}, "ShareGPT (from, value)"),
        ([said("user", "Hi"), said("assistant", "Hello.")], "ShareGPT (from, value)"),
        ({"messages": [{"role": "user", "value": "Hi"}, HI[1]]}, "messages (role, content)"),
        ({"messages": [said("prompter", "Hi"), said("bot", "Hello.")]}, "ShareGPT (from, value)"),
        ({"instruction": "Hi", "output": "Hello."}, "Alpaca (instruction, input, output)"),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, "Alpaca (instruction, input, output)"),
        ({"instruction": "Hi", "input": None, "output": "Hello."}, "Alpaca (instruction, input, output)"),
        ({"instruction": "", "input": "Hi", "output": "Hello."}, "Alpaca (instruction, input, output)"),
        ({"prompt": "Hi", "completion": "Hello."}, "prompt and completion"),
        ({"prompt": HI[:1], "completion": HI[1:]}, "prompt and completion"),
        ({"prompt": HI[:1], "completion": "Hello."}, "prompt and completion"),
        ({"prompt": "Hi", "completion": HI[1:], "label": True}, "prompt and completion"),
        ({"prompt": "Hi", "completion": "Hello.", "label": 1}, "prompt and completion"),
        ({"prompt": "Hi", "completion": "Hello.", "label": "True"}, "prompt and completion"),
        ({"instruction": "Hi", "input": float("nan"), "output": "Hello."}, "Alpaca (instruction, input, output)"),
        ({"question": "Hi", "answer": "Hello."}, "question and answer"),
        ({"Question": "Hi", " Answer ": "Hello."}, "question and answer"),
        ({"instruction": "Hi", "response": "Hello."}, "instruction and response"),
        ({"query": "Hi", "response": "Hello."}, "query and response"),
        ({"input": "Hi", "output": "Hello."}, "input and output"),
        ({"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}, "preference pairs, of which the chosen"),
        ({"conversation": [{"human": "Hi", "assistant": "Hello."}]}, "a list of pairs"),
        ({"id": "1", "data": ["Hi", "Hello."]}, "a list of texts"),
    ],
)
def test_a_question_and_its_answer_in_every_format(row, format_name):
    notes = Notes()
    assert to_conversation(row, notes) == HI
    (name,) = notes.formats
    assert name.startswith(format_name) and notes.formats[name] == 1
    assert not notes.changed and not notes.left_out


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        # what stands beside question and answer
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [user("Add.\n\n1 2"), assistant("3")]),
        ({"instruction": "Why?", "context": "A.", "response": "B"}, [user("Why?\n\nA."), assistant("B")]),
        ({"system_prompt": "S", "question": "Hi", "response": "Ho"}, [system("S"), user("Hi"), assistant("Ho")]),
        (
            {"instruction": "Bye", "output": "See you", "system": "Be kind.", "history": [["Hi", "Hello."]]},
            [system("Be kind."), *HI, user("Bye"), assistant("See you")],
        ),
        ({"conversations": [said("human", "Hi"), said("gpt", "Hello.")], "system": "S"}, [system("S"), *HI]),
        ({"conversation": [{"system": "S", "input": "Hi", "output": "Hello."}]}, [system("S"), *HI]),
        # text parts
        ([user([part("text", "H"), part("text", "i")]), assistant([part("output_text", "Hello.")])], HI),
        ([user(["Hi"]), assistant([part("text", "Hello.")])], HI),
        # system
        ([system("Be kind."), *HI], [system("Be kind."), *HI]),
        ([{"role": "developer", "content": "Be kind."}, *HI], [system("Be kind."), *HI]),
        ([system("A"), {"role": "developer", "content": "B"}, *HI], [system("A\n\nB"), *HI]),
        ([system(""), *HI], HI),
        ([*HI, system("Be short."), *GOOD], [*HI, user("Be short.\n\nWhich?"), GOOD[1]]),
        ([HI[0], system("Be short."), HI[1]], [user("Hi\n\nBe short."), HI[1]]),
        # turns of one role, empty turns, beginning and end
        ([user("A"), user("B"), HI[1]], [user("A\n\nB"), HI[1]]),
        ([HI[0], assistant("A"), assistant("B")], [HI[0], assistant("A\n\nB")]),
        ([HI[0], assistant(""), user("B"), HI[1]], [user("Hi\n\nB"), HI[1]]),
        ([*HI, user(" "), assistant(None)], HI),
        ([*HI, user("And?")], HI),
        ([*HI, user("And?"), user("So?")], HI),
        ([assistant("Welcome!"), *HI], HI),
        ([system("S"), assistant("Welcome!"), *HI], [system("S"), *HI]),
        # half of a character, which no encoding can write
        ([user("Hi \ud83d"), HI[1]], [user("Hi \ufffd"), HI[1]]),
        ([user("Hi \ud83d\ude00"), HI[1]], [user("Hi \U0001f600"), HI[1]]),
        # our own parts stay
        (
            [HI[0], assistant([part("python", "1+1"), part("python_output", "2"), part("text", "Two.")])],
            [HI[0], assistant([part("python", "1+1"), part("python_output", "2"), part("text", "Two.")])],
        ),
        ([HI[0], assistant([part("python", "1+1"), part("text", "Two.")])],
         [HI[0], assistant([part("python", "1+1"), part("text", "Two.")])]),
    ],
)  # fmt: skip
def test_rules_of_conversion(row, messages):
    assert to_conversation(row) == messages


JSON_CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'
SUNNY = [part("python", JSON_CALL), part("python_output", "sunny"), part("text", "It is sunny.")]


@pytest.mark.parametrize(
    ("turns", "content"),
    [
        # arguments as text and as an object; content null, empty or said before the call
        (
            [
                {"role": "assistant", "content": None, "tool_calls": [call("weather", '{"city": "Köln"}')]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                assistant("It is sunny."),
            ],
            SUNNY,
        ),
        (
            [
                {"role": "assistant", "tool_calls": [call("weather", {"city": "Köln"})]},
                {"role": "tool", "content": [part("text", "sunny")]},
                assistant("It is sunny."),
            ],
            SUNNY,
        ),
        (
            [
                {"role": "assistant", "content": "", "function_call": call("weather", {"city": "Köln"})["function"]},
                {"role": "function", "name": "weather", "content": "sunny"},
                assistant("It is sunny."),
            ],
            SUNNY,
        ),
        (
            [said("function_call", JSON_CALL), said("observation", "sunny"), said("gpt", "It is sunny.")],
            SUNNY,
        ),
        (
            [
                {"role": "assistant", "content": "Let me see. ", "tool_calls": f"[{JSON_CALL}]"},
                {"role": "tool", "content": {"sky": "sunny"}},
            ],
            [part("text", "Let me see. "), part("python", JSON_CALL), part("python_output", '{"sky": "sunny"}')],
        ),
        # the calculator's call is its expression; a result that the data lack is what our calculator says
        (
            [
                {"role": "assistant", "content": None, "tool_calls": [call("calculator", '{"expression": "12*7"}')]},
                {"role": "tool", "content": "84"},
                assistant("84."),
            ],
            [part("python", "12*7"), part("python_output", "84"), part("text", "84.")],
        ),
        (
            [{"role": "assistant", "tool_calls": [call("calculator", {"expression": "20/2"})]}, assistant("Ten.")],
            [part("python", "20/2"), part("python_output", "10.0"), part("text", "Ten.")],
        ),
        # several calls: each result behind its call, by id or in order
        (
            [
                {"role": "assistant", "tool_calls": [call("a", {}, "1"), call("b", {}, "2")]},
                {"role": "tool", "tool_call_id": "2", "content": "B"},
                {"role": "tool", "tool_call_id": "1", "content": "A"},
                assistant("Done."),
            ],
            [
                part("python", '{"name": "a", "arguments": {}}'),
                part("python_output", "A"),
                part("python", '{"name": "b", "arguments": {}}'),
                part("python_output", "B"),
                part("text", "Done."),
            ],
        ),
        (
            [
                said("function_call", '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'),
                said("observation", "A"),
                said("observation", "B"),
            ],
            [
                part("python", '{"name": "a", "arguments": {}}'),
                part("python_output", "A"),
                part("python", '{"name": "b", "arguments": {}}'),
                part("python_output", "B"),
            ],
        ),
        # calls that are written in the text stay text
        (
            [said("gpt", "<tool_call>{}</tool_call>"), said("tool", "sunny"), said("gpt", "Sunny.")],
            [part("text", "<tool_call>{}</tool_call>"), part("python_output", "sunny"), part("text", "Sunny.")],
        ),
    ],
)  # fmt: skip
def test_tool_calls_become_parts_of_the_answer(turns, content):
    first = said("human", "Hi") if "from" in turns[0] else user("Hi")
    assert to_conversation({"messages": [first, *turns], "tools": []}) == [user("Hi"), assistant(content)]


def test_a_converted_call_renders_as_the_template_renders_the_call_itself():
    tokenizer = tokenizers.train(["What is 12*7? It is 84. The weather is sunny. "] * 20, 280)
    for function in (call("calculator", {"expression": "12*7"}), call("weather", {"city": "Köln"})):
        messages = [
            user("What is 12*7?"),
            {"role": "assistant", "content": "It is ", "tool_calls": [function]},
            {"role": "tool", "content": "84"},
            assistant("84."),
        ]
        assert render_conversation(tokenizer, to_conversation(messages)) == render_conversation(tokenizer, messages)


def test_what_the_rules_do_is_counted():
    notes = Notes()
    rows = [
        HI,
        [user("A"), *HI],
        {"messages": [*HI, user("And?")], "id": 7},
        {"prompt": "Hi", "completion": "Go away.", "label": False},
        [user("Hello?")],
        [HI[1], HI[0]],
        {"messages": []},
        {"messages": None},
        {"question": "Why?", "answer": None},
        [HI[0], {"role": "assistant", "reasoning_content": "Hm", "tool_calls": [call("weather", {})]}],
    ]
    assert [to_conversation(row, notes) is not None for row in rows] == [True] * 3 + [False] * 6 + [True]
    assert notes.left_out == {"the answer is marked as a bad one (label false)": 1, "the assistant answers nothing": 5}
    assert notes.changed == {
        "consecutive messages of one role are joined": 1,
        "a last message without an answer is left out": 1,
    }
    assert notes.unused == {"id", "reasoning_content of messages"}
    assert notes.other_tools == {"weather"}
    assert sum(notes.formats.values()) == len(rows)


@pytest.mark.parametrize("label", [False, 0, 0.0, "False", "0"])
def test_an_answer_marked_as_bad_is_left_out_whatever_the_mark_is_written_as(label):
    notes = Notes()
    assert to_conversation({"prompt": "Hi", "completion": "Go.", "label": label}, notes) is None
    assert dict(notes.left_out) == {"the answer is marked as a bad one (label false)": 1} and not notes.unused


def test_messages_that_are_marked_as_bad_are_left_out():
    notes = Notes()
    assert to_conversation({"messages": HI, "label": False}, notes) is None
    assert to_conversation({"messages": HI, "label": True}, notes) == HI
    assert dict(notes.left_out) == {"the answer is marked as a bad one (label false)": 1} and not notes.unused


@pytest.mark.parametrize("answer", ['[{"name": "Anna"}]', '[{"question": "2+2?", "answer": "4"}]'])
def test_an_answer_that_is_json_stays_as_it_is(answer):
    assert to_conversation({"prompt": "Hi", "completion": answer}) == [HI[0], assistant(answer)]
    assert to_conversation({"instruction": answer, "output": "Hello."}) == [user(answer), HI[1]]
    pair = to_preference({"prompt": "Hi", "chosen": answer, "rejected": "Go."})
    assert pair == {"prompt": [HI[0]], "chosen": [assistant(answer)], "rejected": [assistant("Go.")]}


def test_a_weight_other_than_one_is_named_as_not_used():
    notes = Notes()
    assert to_conversation([HI[0], {**HI[1], "weight": 1.0, "train": True}], notes) == HI and not notes.unused
    assert to_conversation([HI[0], {**HI[1], "weight": 0.5}], notes) == HI
    assert notes.unused == {"weight of messages"}


def test_a_call_without_arguments_has_none():
    turns = [HI[0], {**assistant("So."), "tool_calls": [call("calculator", None), call("now", None)]}]
    (_, answer) = to_conversation(turns)
    written = [one["text"] for one in answer["content"] if one["type"] == "python"]
    assert [json.loads(one) for one in written] == [{"name": name, "arguments": {}} for name in ("calculator", "now")]


def test_a_label_of_other_data_is_not_a_mark():
    notes = Notes()
    assert to_conversation({"question": "Hi", "answer": "Hello.", "label": 0}, notes) == HI
    assert notes.unused == {"label"}


def test_a_system_message_in_parts_is_read():
    row = {"system": [part("text", "Be kind.")], "messages": HI}
    notes = Notes()
    assert to_conversation(row, notes) == [system("Be kind."), *HI] and not notes.unused


@pytest.mark.parametrize(("result", "text"), [(4, "4"), (True, "true"), ([1, 2], "[1, 2]"), ({"x": 1}, '{"x": 1}')])
def test_a_result_that_is_data_is_written_as_json(result, text):
    turns = [user("What?"), {**assistant(None), "tool_calls": [call("f", {})]}]
    turns += [{"role": "tool", "tool_call_id": "c1", "content": result}, assistant("This.")]
    (_, answer) = to_conversation(turns)
    assert answer["content"][1:] == [part("python_output", text), part("text", "This.")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "Once upon a time"}, "looks like plain text (keys 'text'), not like a chat; give it to pretraining"),
        ({"prompt": "Hi"}, "looks like prompts without answers (keys 'prompt'); add the answers as 'completion'"),
        ({"a": 1, "b": 2}, "has the keys 'a', 'b', which are of no known format; known formats: messages"),
        ({}, "is an empty object"),
        ({"text": "### Human: Hi### Assistant: Hello."}, "is written out as text (### Human:); take the data"),
        ({"text": "<|im_start|>user\nHi<|im_end|>"}, "is written out as text (<|im_start|>)"),
        ({"custom_id": "1", "body": {"messages": HI}}, "has the keys 'custom_id', 'body', which are of no known"),
        ({"messages": str(HI)}, "has text under 'messages' where a list of messages is due; write that list as JSON"),
        ({"instruction": "Hi", "input": ""}, "looks like questions without an answer (keys 'instruction', 'input')"),
        ({"question": "q", "answers": ["a", "b"]}, "looks like questions without an answer"),
        ({"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"}, "looks like a message tree"),
        ({"message_tree_id": "a", "prompt": {"text": "Hi", "role": "prompter"}}, "looks like a message tree"),
        ({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], "id": 1}, "looks like Gemini's format"),
        ({"image": "a.png", "conversations": [said("human", "<image>\nWhat?"), said("gpt", "A cat.")]},
         "has a placeholder such as <image> for what is under 'image'"),
        ({"question": "2+2?", "answer": {"value": "4"}}, "has an object under 'answer' where text is due"),
        ("Hello", "is text where an object or a list of messages is due"),
        (["Hi", "Hello."], "is a list of texts, which does not say who speaks"),
        (HI[0], "is a single message where a whole conversation is due"),
        ({"question": "2+2?", "choices": ["3", "4"], "answer": 1}, "looks like a multiple-choice exam"),
        ({"question": "2+2?", "answer": 4}, "has a number under 'answer' where text is due"),
        ({"question": "2+2?", "answer": ["4", "four"]}, "has a list under 'answer' that holds no messages"),
        ({"title": "x", "mapping": {}}, "looks like an export of ChatGPT"),
        ([{"role": "narrator", "content": "x"}, *HI], "message 1 has the role 'narrator'; known are user"),
        ([HI[0], {"content": "x"}], "message 2 has no role (keys 'content')"),
        ([{"role": "user", "text": "Hi"}, HI[1]], "message 1 has no content (keys 'role', 'text')"),
        ([user(3), HI[1]], "message 1 has a number as its content where text is due"),
        ([user([{"type": "image_url", "image_url": {}}]), HI[1]], "message 1 has a part of type 'image_url'; only"),
        ([user([part("python", "1")]), HI[1]], "message 1 has a part of type 'python'"),
        ([{"role": "tool", "content": "x"}, *HI], "message 1 is the result of a tool, and no message of"),
        ([HI[0], {**HI[1], "weight": 0}], "message 2 has the weight 0"),
        ([HI[0], {**HI[1], "weight": "0"}], "message 2 has the weight 0"),
        ([HI[0], {**HI[1], "train": False}], "message 2 has the train False"),
        ([HI[0], {**HI[1], "tool_calls": [call("calculator", [1])]}], "whose arguments are a list where an object"),
        ({"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Hello."},
         "has a chat that is written out as text under 'prompt' (it ends with <|im_start|>assistant)"),
        ({"instruction": "Below is a task.\n\n### Instruction:\nAdd.\n\n### Response:", "output": "3"},
         "has a chat that is written out as text under 'instruction'"),
        ([HI[0], {"role": "assistant", "tool_calls": [{"id": "1"}]}], "message 2 has a tool call without a name"),
        ([HI[0], "Hello."], "message 2 is text where an object with role and content is due"),
        ({"chosen": "a", "rejected": "b"}, "has 'chosen' and 'rejected' without a 'prompt'"),
        ({"instruction": "x", "output": "y", "history": "z"}, "has a 'history' that is no list of pairs"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_by_what_it_looks_like(row, says):
    with pytest.raises(NotAConversation) as error:
        to_conversation(row)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        {"question": "Hi", "chosen": "Hello.", "rejected": "Go."},
        {"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Go.")]},
        {"prompt": "Hi", "chosen": HI, "rejected": [HI[0], assistant("Go.")]},
        {"chosen": HI, "rejected": [HI[0], assistant("Go.")]},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello.", "rejected": "Go."},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
        {
            "conversations": [said("human", "Hi")],
            "prompt": [said("human", "Hi")],
            "chosen": said("gpt", "Hello."),
            "rejected": said("gpt", "Go."),
        },
    ],
)
def test_preference_pairs(row):
    assert to_preference(row) == {"prompt": [HI[0]], "chosen": [HI[1]], "rejected": [assistant("Go.")]}


def test_a_preference_pair_has_one_prompt_and_two_answers():
    with pytest.raises(NotAConversation, match="must differ only in the last answer"):
        to_preference({"chosen": HI, "rejected": GOOD})
    with pytest.raises(NotAConversation, match="'rejected' holds no answer"):
        to_preference({"prompt": "Hi", "chosen": "Hello.", "rejected": " "})
    system_row = {"system": "S", "prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}
    assert to_preference(system_row)["prompt"] == [system("S"), HI[0]]
    for row, kind in ((HI, "a list"), ("Hi", "text"), (None, "null")):
        with pytest.raises(NotAConversation, match=f"is {kind} where a preference pair is due"):
            to_preference(row)


@pytest.mark.parametrize("before", [[system("S")], [*GOOD]])
def test_what_only_the_prompt_of_a_pair_has_is_kept(before):
    row = {"prompt": [*before, HI[0]], "chosen": HI, "rejected": [HI[0], assistant("Go.")]}
    assert to_preference(row)["prompt"] == [*before, HI[0]]


def test_one_value_may_hold_many_rows():
    rows = [{"instruction": "Hi", "output": "Hello."}] * 2
    assert rows_of_value(rows) == rows_of_value({"version": 1, "train": rows}) == rows
    assert rows_of_value(HI) == [HI] and rows_of_value({"messages": HI}) == [{"messages": HI}]
    assert rows_of_value([HI, GOOD]) == [HI, GOOD]
    tagged = {"question": "x", "tags": [{"name": "y"}]}
    assert rows_of_value(tagged) == [tagged]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_task_says_what_it_read(tmp_path, capsys):
    alpaca = {"instruction": "Hi", "output": "Hello.", "id": 1}
    path = write_lines(tmp_path / "chats.jsonl", [alpaca] * 30 + [{"instruction": "Hi", "output": ""}])
    task, _ = load(f"conversations={path}", "train")
    assert [example["messages"] for example in task] == [HI] * 30
    said = capsys.readouterr()
    assert said.out == (
        f"{path}: 30 conversations, format Alpaca (instruction, input, output)\n"
        "  not used: id\n"
        "  1 of 31 conversations (3.2%) are left out: the assistant answers nothing\n"
    )
    assert said.err == ""
    assert task.score(task[0], " Hello. ") == 1.0 and task.score(task[0], "Hi") == 0.0


def test_a_large_share_left_out_is_a_warning_and_all_of_it_a_refusal(tmp_path, capsys):
    path = write_lines(tmp_path / "chats.jsonl", [HI, {"messages": GOOD}, [HI[0]]])
    assert len(load(f"conversations={path}", "test")[0]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {path}: 1 of 3 conversations (33.3%) are left out: the assistant answers nothing")
    write_lines(path, [[HI[0]]])
    with pytest.raises(UserError, match="holds no conversation to train on: the assistant answers nothing"):
        load(f"conversations={path}", "train")


def test_a_comma_at_the_end_names_no_further_source(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "chats.jsonl", [HI])
    write_lines(tmp_path / "other.jsonl", [GOOD])
    monkeypatch.chdir(tmp_path)
    assert len(load(f"conversations={path},", "train")[0]) == 1


def test_the_place_of_a_wrong_row_is_named(tmp_path):
    path = write_lines(tmp_path / "chats.jsonl", [HI, GOOD, {"text": "x"}])
    with pytest.raises(UserError, match="chats.jsonl, line 3: looks like plain text"):
        load(f"conversations={path}", "train")
    array = tmp_path / "chats.json"
    array.write_text(json.dumps([{"messages": HI}, {"messages": 3}], indent=1))
    with pytest.raises(UserError, match="chats.json, the file's value, item 2: has the keys 'messages'"):
        load(f"conversations={array}", "train")


KEYS = (
    "messages conversations conversation data prompt completion chosen rejected instruction input output question "
    "answer text label history system role content from value tool_calls function_call weight type name arguments "
    "function id choices"
).split()
TEXTS = ["", " ", "hi", "[{", "[{}]", '[{"role":"user","content":"x"}]', "{}", '{"name":"a"}']
LEAVES = [*TEXTS, None, True, False, 0, 1, 2.5, "user", "assistant", "human", "gpt", "text", "python", "calculator"]


def random_value(rng, depth):
    kind = rng.random() if depth else 0.0
    if kind < 0.5:
        return rng.choice(LEAVES)
    if kind < 0.75:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): random_value(rng, depth - 1) for _ in range(rng.randrange(5))}


def random_message(rng):
    content = rng.choice([random_value(rng, 2), "text", "text"])
    if rng.random() < 0.5:
        message = {"role": rng.choice(["user", "assistant", "system", "tool", "developer"]), "content": content}
    else:
        message = {"from": rng.choice(["human", "gpt", "function_call", "observation"]), "value": content}
    if rng.random() < 0.3:
        message[rng.choice(["tool_calls", "function_call", "weight", "tool_call_id"])] = random_value(rng, 3)
    return message


@pytest.mark.parametrize("seed", range(4))
def test_any_value_is_a_conversation_of_our_form_or_refused(seed):
    rng, converted = random.Random(seed), 0
    for _ in range(4000):
        value = random_value(rng, 4)
        if rng.random() < 0.5:
            value = [random_message(rng) for _ in range(rng.randrange(5))]
            value = {rng.choice(["messages", "conversations"]): value} if rng.random() < 0.5 else value
        before = json.dumps(value)
        try:
            for row in rows_of_value(value):
                messages = to_conversation(row)
                converted += messages is not None
                check_form(messages or HI)
            if isinstance(value, dict):
                to_preference(value)
        except NotAConversation as error:
            assert "\n" not in str(error)
        assert json.dumps(value) == before, "the row is left as it was"
    assert converted > 50


def check_form(messages):
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    assert turns and [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            assert message["role"] == "assistant" and content
            assert all(set(one) == {"type", "text"} and isinstance(one["text"], str) for one in content)
