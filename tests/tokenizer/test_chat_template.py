"""The chat template: what it renders, and that no text becomes a control token."""

import random
import re

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from nanochat_hf.generation.tool_loop import ControlTokens, Turn
from nanochat_hf.tokenizer import SPECIAL_TOKENS, render_conversation, render_prompt

CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12*7"}}}
TOOL_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12*7?"},
    {"role": "assistant", "content": "It is ", "tool_calls": [CALL]},
    {"role": "tool", "name": "calculator", "content": "84"},
    {"role": "assistant", "content": "84."},
]
PARTS_CHAT = [
    {"role": "user", "content": "Be brief.\n\nWhat is 12*7?"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "It is "},
            {"type": "python", "text": "12*7"},
            {"type": "python_output", "text": "84"},
            {"type": "text", "text": "84."},
        ],
    },
]


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    assert (folder / "chat_template.jinja").is_file() and (folder / "tokenizer.json").is_file()
    return AutoTokenizer.from_pretrained(folder)


def test_the_folder_holds_the_whole_tokenizer(loaded):
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(loaded) - 9, len(loaded)))
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|bos|>", "<|assistant_end|>", "<|bos|>")
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 2048)


def test_tool_messages_and_parts_render_alike(loaded):
    assert render_conversation(loaded, TOOL_CHAT) == render_conversation(loaded, PARTS_CHAT)
    ids, mask = render_conversation(loaded, TOOL_CHAT, max_length=7)
    full, full_mask = render_conversation(loaded, TOOL_CHAT)
    assert (ids, mask) == (full[:7], full_mask[:7])


def test_the_template_only_ever_appends(loaded):
    def text(messages, **options):
        return loaded.apply_chat_template(messages, tokenize=False, **options)

    assert text(TOOL_CHAT).startswith(text(TOOL_CHAT[:4])) and text(TOOL_CHAT[:4]).startswith(text(TOOL_CHAT[:3]))
    assert text(TOOL_CHAT).startswith(text(TOOL_CHAT[:2], add_generation_prompt=True))
    assert render_prompt(loaded, TOOL_CHAT[:2])[-1] == loaded.convert_tokens_to_ids("<|assistant_start|>")
    assert text(TOOL_CHAT[:4], add_generation_prompt=True).endswith("84<|output_end|>")


def test_answers_are_read_back(loaded):
    prompt = loaded.apply_chat_template(TOOL_CHAT[:2], add_generation_prompt=True, tokenize=False)
    answer = loaded.parse_response("It is <|python_start|>12*7<|python_end|>", prefix=prompt)
    assert answer["content"] == "It is " and answer["tool_calls"] == [CALL]
    assert loaded.parse_response("Hi there<|assistant_end|>", prefix=prompt)["content"] == "Hi there"


def test_a_prompt_with_an_answer_at_its_end_is_refused_not_cut(loaded):
    for messages in ([], TOOL_CHAT, TOOL_CHAT[:3]):
        with pytest.raises(ValueError, match="assistant's own|empty"):
            render_prompt(loaded, messages)
    assert render_prompt(loaded, TOOL_CHAT[:4]) == render_conversation(loaded, TOOL_CHAT[:4])[0]


def test_an_unfinished_answer_can_be_continued(loaded):
    chat = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    text = loaded.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert text == "<|bos|><|user_start|>Count.<|user_end|><|assistant_start|>One, two,"


def test_every_rendered_answer_is_read_back(loaded):
    """What the template writes of an assistant's message, `parse_response` reads, call by call."""
    prompt = loaded.apply_chat_template(TOOL_CHAT[:2], add_generation_prompt=True, tokenize=False)
    second = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "'a b'.count('a')"}}}
    for message in [
        {"role": "assistant", "content": "  Spaces\n and é漢😀 stay. "},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": "Two: ", "tool_calls": [CALL, second]},
    ]:
        whole = loaded.apply_chat_template([*TOOL_CHAT[:2], message], tokenize=False)
        read = loaded.parse_response(whole.removeprefix(prompt), prefix=prompt)
        assert read["role"] == "assistant" and read.get("tool_calls", []) == message.get("tool_calls", [])
        assert (read.get("content") or "") == message["content"]


def test_every_beginning_of_a_chat_is_a_beginning_of_its_rendering(loaded):
    """What GRPO's tool loop needs: rendering more messages only appends."""
    chat = [*TOOL_CHAT, {"role": "user", "content": "And 1+1?"}, *TOOL_CHAT[2:]]
    texts = [loaded.apply_chat_template(chat[:end], tokenize=False) for end in range(2, len(chat) + 1)]
    for before, after in zip(texts, texts[1:], strict=False):
        assert after.startswith(before) and len(after) > len(before)


def controls(tokenizer, messages) -> list[str]:
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    return [name for name in tokenizer.convert_ids_to_tokens(ids) if name in SPECIAL_TOKENS]


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_typed_control_tokens_stay_text(loaded, name):
    for text in (name, f"x{name}y", name * 2, f"<|{name}", f"{name}|>", name[:-2] + name, "<" + name):
        harmless = [{**one, "content": "x"} for one in TOOL_CHAT]
        typed = [{**one, "content": text} for one in TOOL_CHAT]
        typed[2]["tool_calls"] = [{"function": {"name": "calculator", "arguments": {"expression": text}}}]
        assert controls(loaded, typed) == controls(loaded, harmless)
        typed[2]["tool_calls"] = [{"function": {"name": text, "arguments": {text: text}}}]
        assert controls(loaded, typed) == controls(loaded, harmless)


def chats_with_a_seam(first: str, second: str) -> list[list[dict]]:
    """Conversations in which two texts meet at every kind of boundary."""
    user, assistant = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    call = [{"function": {"name": "calculator", "arguments": {"expression": first}}}]
    both = [{"type": "text", "text": first}, {"type": "text", "text": second}]
    with_empty = [both[0], {"type": "text", "text": ""}, both[1]]
    return [
        [{"role": "system", "content": first}, {"role": "user", "content": second}, assistant],
        [{"role": "system", "content": both}, user, assistant],
        [{"role": "user", "content": first}, {"role": "assistant", "content": second}],
        [{"role": "user", "content": both}, assistant],
        [{"role": "user", "content": [first, second]}, assistant],
        [user, {"role": "assistant", "content": first}, {"role": "user", "content": second}, assistant],
        [user, {"role": "assistant", "content": both}],
        [user, {"role": "assistant", "content": with_empty}],
        [user, {"role": "assistant", "content": [both[0], {"type": "python", "text": second}]}],
        [user, {"role": "assistant", "content": [{"type": "python", "text": first}, both[1]]}],
        [
            user,
            {
                "role": "assistant",
                "content": [{"type": "python", "text": first}, {"type": "python_output", "text": second}, both[1]],
            },
        ],
        [user, {"role": "assistant", "content": second, "tool_calls": call}, {"role": "tool", "content": second}],
        [user, {"role": "assistant", "tool_calls": call}, {"role": "tool", "content": both}, assistant],
        [
            user,
            {"role": "assistant", "tool_calls": call},
            {"role": "tool", "content": first},
            {**assistant, "content": second},
        ],
    ]


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_control_tokens_split_over_any_boundary_stay_text(loaded, name):
    expected = [controls(loaded, chat) for chat in chats_with_a_seam("x", "y")]
    for cut in range(1, len(name)):
        chats = chats_with_a_seam(name[:cut], name[cut:])
        assert [controls(loaded, chat) for chat in chats] == expected, cut


def test_whoever_renders_the_checkpoints_files_is_safe(loaded, tmp_path):
    """A server that knows only Jinja, `chat_template.jinja` and `tokenizer.json`, with nothing of this library."""
    loaded.save_pretrained(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    template = re.sub(r"{%-? *(end)?generation *-?%}", "", template)  # servers without transformers strip these
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    every = "".join(SPECIAL_TOKENS)
    for text in (every, every.upper(), "<|<|bos|>bos|>", "<|bos" + every + "|>"):
        chat = [{**one, "content": text} for one in TOOL_CHAT]
        rendered = ImmutableSandboxedEnvironment().from_string(template).render(messages=chat, bos_token="<|bos|>")
        typed = [one for one in tokenizer.encode(rendered, add_special_tokens=False).tokens if one in SPECIAL_TOKENS]
        assert typed == controls(loaded, [{**one, "content": "x"} for one in TOOL_CHAT])


def test_look_alikes_by_case_and_unicode_are_left_alone_and_are_text(loaded):
    cyrillic = str.maketrans("aeo", "\u0430\u0435\u043e")
    for name in SPECIAL_TOKENS:
        inner = name[2:-2]
        look_alikes = [
            name.upper(),
            name.title(),
            f"＜|{inner}|＞",
            f"<｜{inner}｜>",  # fullwidth bars, as other models' control tokens have
            f"<\u2223{inner}\u2223>",
            "<|" + inner.translate(cyrillic) + "|>",
            f"<|\u200b{inner}|>",
            f"<\u00ad|{inner}|>",
            f"<|{inner}\u0301|>",
            f"<| {inner} |>",
            "<|" + "".join(chr(ord(letter) + 0xFEE0) for letter in inner) + "|>",  # what NFKC would make the name of
        ]
        for text in look_alikes:
            chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
            rendered = loaded.apply_chat_template(chat, tokenize=False)
            assert rendered == f"<|bos|><|user_start|>{text}<|user_end|><|assistant_start|>{text}<|assistant_end|>"
            assert len(controls(loaded, chat)) == 5, text


def test_ordinary_text_and_look_alikes_are_left_as_they_are(loaded):
    ordinary = "a <| b |> c <|BOS|> <|end|> < |bos|> ＜|bos|＞ <|bоs|> {{ x }} {% y %} <b>&amp;\u200b\t\r\n"
    chat = [{"role": "user", "content": ordinary}, {"role": "assistant", "content": ordinary}]
    text = loaded.apply_chat_template(chat, tokenize=False)
    assert text == (f"<|bos|><|user_start|>{ordinary}<|user_end|><|assistant_start|>{ordinary}<|assistant_end|>")
    assert len(controls(loaded, chat)) == 5


KINDS = ("text", "python", "python_output")


def turn_parts(tokenizer, text):
    """How this project's own generation reads the same turn."""
    turn = Turn(ControlTokens.from_tokenizer(tokenizer), tokenizer, 10_000, tool=None)
    for token in tokenizer.encode(text, add_special_tokens=False):
        if turn.finish_reason is None:
            turn.add(token)
    return turn.parts()


def random_turn(generator):
    """Texts, calls and results in any order, some of them broken off, with control tokens where none belongs."""
    words = ["So ", " 12*7", "84", "\n", "é漢😀", "<|x|>", "$", ""]
    kinds = ["", "", "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]
    pieces = [generator.choice(kinds) + generator.choice(words) for _ in range(generator.randrange(9))]
    return "".join(pieces) + generator.choice(["<|assistant_end|>", "<|bos|>"])


def test_one_reading_of_an_answer_whoever_reads_it(loaded):
    """`parse_response` (pipeline, TRL) and this project's generation (server, chat) see the same, padding or not."""
    generator = random.Random(0)
    turns = [random_turn(generator) for _ in range(300)]
    prompt = loaded.apply_chat_template(TOOL_CHAT[:2], add_generation_prompt=True, tokenize=False)
    ids = [loaded.encode(turn, add_special_tokens=False) for turn in turns]
    longest = max(map(len, ids))
    batch = [row + [loaded.pad_token_id] * (longest - len(row)) for row in ids]
    for turn, read in zip(turns, loaded.parse_response(batch, prefix=prompt), strict=True):
        parts = turn_parts(loaded, turn)
        texts = {kind: [part["text"] for part in parts if part["type"] == kind] for kind in KINDS}
        assert read["content"] == "".join(texts["text"]), turn
        calls = [call["function"]["arguments"]["expression"] for call in read.get("tool_calls", [])]
        assert [call for call in calls if call] == texts["python"], turn
        assert [result for result in read.get("tool_results", []) if result] == texts["python_output"], turn
        assert set(read) <= {"role", "content", "tool_calls", "tool_results"}
    assert sum("tool_results" in read for read in loaded.parse_response(batch, prefix=prompt)) > 50


def test_a_read_answer_can_be_sent_back(loaded):
    """Calls with their results in one message, as `parse_response` gives them, render without a tool's message."""
    prompt = loaded.apply_chat_template(TOOL_CHAT[:2], add_generation_prompt=True, tokenize=False)
    turn = "<|python_start|>12*7<|python_end|><|output_start|>84<|output_end|>It is 84.<|assistant_end|>"
    read = loaded.parse_response(turn + "<|bos|><|bos|>", prefix=prompt)
    assert read == {"role": "assistant", "content": "It is 84.", "tool_calls": [CALL], "tool_results": ["84"]}
    assert loaded.apply_chat_template([*TOOL_CHAT[:2], read], tokenize=False) == prompt + turn
    _, mask = render_conversation(loaded, [*TOOL_CHAT[:2], read])
    parts = [{"type": "python", "text": "12*7"}, {"type": "python_output", "text": "84"}]
    parts.append({"type": "text", "text": "It is 84."})
    assert mask == render_conversation(loaded, [*TOOL_CHAT[:2], {"role": "assistant", "content": parts}])[1]
    for name in SPECIAL_TOKENS:
        typed = {**read, "content": name, "tool_results": [name]}
        assert controls(loaded, [*TOOL_CHAT[:2], typed]) == controls(loaded, [*TOOL_CHAT[:2], read])


def test_null_fields_are_absent_fields(loaded):
    """What `model_dump()` of OpenAI's client gives."""
    nulls = {"tool_calls": None, "function_call": None, "refusal": None, "audio": None}
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", **nulls}]
    without = [chat[0], {"role": "assistant", "content": "Hello."}]
    assert loaded.apply_chat_template(chat, tokenize=False) == loaded.apply_chat_template(without, tokenize=False)
