"""The chat template: what it renders, and that no text becomes a control token."""

import pytest
from transformers import AutoTokenizer

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


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_control_tokens_in_two_halves_stay_text(loaded, name):
    for cut in range(1, len(name)):
        first, second = name[:cut], name[cut:]
        parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
        chat = [
            {"role": "system", "content": first},
            {"role": "user", "content": second},
            {"role": "assistant", "content": parts},
        ]
        assert controls(loaded, chat) == [
            "<|bos|>",
            "<|user_start|>",
            "<|user_end|>",
            "<|assistant_start|>",
            "<|assistant_end|>",
        ]


def test_ordinary_text_and_look_alikes_are_left_as_they_are(loaded):
    ordinary = "a <| b |> c <|BOS|> <|end|> < |bos|> ＜|bos|＞ <|bоs|> {{ x }} {% y %} <b>&amp;\u200b\t\r\n"
    chat = [{"role": "user", "content": ordinary}, {"role": "assistant", "content": ordinary}]
    text = loaded.apply_chat_template(chat, tokenize=False)
    assert text == (f"<|bos|><|user_start|>{ordinary}<|user_end|><|assistant_start|>{ordinary}<|assistant_end|>")
    assert len(controls(loaded, chat)) == 5
