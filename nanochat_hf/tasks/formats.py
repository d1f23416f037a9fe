"""The formats in which people keep chats. In: a row of any of them. Out: one conversation in the form of our template.

That form is: at most one system message at the beginning, then user and assistant in turn, the user first, the
assistant last. A tool's call and its result are parts of the assistant's message (`python`, `python_output`). What a
rule changes or leaves out is counted in `Notes`. docs/your-own-data.md lists the formats and the rules.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nanochat_hf.data.decoding import without_lone_surrogates
from nanochat_hf.tools.registry import TOOLS, run_call, written_call

Message = dict[str, Any]

ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard", "function_call",
                  "tool_call", "function-call"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "tool_response", "function_response", "function-response", "ipython"),
}  # fmt: skip
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
CALL_ROLES = ("function_call", "tool_call", "function-call")  # ShareGPT: the text of such a turn is the call
TEXT_PARTS = ("text", "input_text", "output_text")
OWN_PARTS = ("python", "python_output")
MESSAGE_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "data")
QUESTIONS = ("instruction", "question", "prompt", "query", "problem", "user", "human", "input")
ANSWERS = ("output", "response", "completion", "solution", "answer", "reply", "assistant", "bot", "target")
CONTEXTS = ("input", "context")  # of a row with a question: joined to it
SYSTEMS = ("system", "system_prompt")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
PLACEHOLDER = re.compile(r"<(image|video|audio)>")
LABELS = dict.fromkeys(("true", "yes", "1", "1.0"), True) | dict.fromkeys(("false", "no", "0", "0.0"), False)
# What shows that a text is a chat, written out for another model.
WRITTEN_CHATS = ("<|im_start|>", "[INST]", "<|start_header_id|>", "<start_of_turn>", "### Human:", "### Instruction:",
                 "USER: ", "\n\nHuman: ", "<|user|>")  # fmt: skip
# How a prompt ends that another model's template has rendered, with the chat in one text.
ANSWER_CUES = ("<|im_start|>assistant", "[/INST]", "<|assistant|>", "<|end_header_id|>", "<start_of_turn>model",
               "### Response:", "### Assistant:", "ASSISTANT:", "\n\nAssistant:")  # fmt: skip
KNOWN_FORMATS = "messages (role, content), ShareGPT (from, value), Alpaca, prompt and completion, question and answer"
JOIN = "\n\n"  # between texts that become one; our template puts the same after a system message


class NotAConversation(ValueError):
    """A row that is no conversation of a known format. The message says what it looks like and what to do."""


@dataclass
class Notes:
    """Counts what was seen and what the rules did, over the rows of one source.

    Attributes:
        formats: name of a format → conversations in it.
        left_out: reason → conversations that were left out.
        changed: rule → conversations that it changed.
        unused: keys of rows and messages that were not read.
        other_tools: names of called tools that our models do not have.
    """

    formats: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)
    changed: Counter = field(default_factory=Counter)
    unused: set[str] = field(default_factory=set)
    other_tools: set[str] = field(default_factory=set)


def rows_of_value(value: Any) -> list[Any]:
    """Returns the rows that one JSON value holds: itself, or the items of a list of rows.

    An object whose only list is one of rows, such as `{"version": 1, "train": [...]}`, stands for that list.
    """
    if isinstance(value, dict) and not _names_a_format(value):
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict) and _names_a_format(lists[0][0]):
            value = lists[0]
    is_list_of_rows = isinstance(value, list) and bool(value) and not _is_turn(value[0])
    return value if is_list_of_rows else [value]


def to_conversation(row: Any, notes: Notes | None = None) -> list[Message] | None:
    """Converts a row of any known format.

    Args:
        row: a dict, or a list of messages.
        notes: receives what was seen and done.

    Returns:
        The messages, or None where there is nothing to train on, which `notes` counts.

    Raises:
        NotAConversation: the row is in no known format; the message says what it looks like and the remedy.
    """
    notes = notes if notes is not None else Notes()
    name, messages, rejected = _recognise(row, notes)
    notes.formats[name] += 1
    if rejected:
        notes.left_out["the answer is marked as a bad one (label false)"] += 1
        return None
    changed: set[str] = set()
    conversation = canonical(messages, notes, changed)
    if conversation is None:
        notes.left_out["the assistant answers nothing"] += 1
        return None
    notes.changed.update(changed)
    return conversation


def to_preference(row: dict[str, Any]) -> dict[str, list[Message]]:
    """Converts a preference pair, as DPO needs it.

    Args:
        row: `prompt`, `chosen` and `rejected`, each text or messages; or `chosen` and `rejected` with the prompt in
            both, as messages or as text with "\\n\\nHuman: " and "\\n\\nAssistant: " before the turns.

    Returns:
        `prompt`: messages that end with the user's; `chosen` and `rejected`: the assistant's message each.

    Raises:
        NotAConversation: the row is no preference pair.
    """
    if not isinstance(row, dict):
        raise NotAConversation(
            f"is {_kind(row)} where a preference pair is due: an object with prompt, chosen, rejected"
        )
    prompt, chosen, rejected = _preference(_without_nulls(_lowered(row)))
    found = {}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        conversation = canonical([*prompt, *answer], Notes(), set())
        if conversation is None:
            raise NotAConversation(f"'{name}' holds no answer of the assistant; leave the row out")
        found[name] = conversation
    if found["chosen"][:-1] != found["rejected"][:-1]:
        raise NotAConversation("'chosen' and 'rejected' must differ only in the last answer; leave the row out")
    return {"prompt": found["chosen"][:-1], "chosen": found["chosen"][-1:], "rejected": found["rejected"][-1:]}


# ---- which format a row has ---------------------------------------------------------


def _recognise(row: Any, notes: Notes) -> tuple[str, list[Any], bool]:
    """Returns the name of the row's format, its raw messages, and whether it is marked as a bad answer."""
    if isinstance(row, list):
        if row and all(isinstance(turn, str) for turn in row):
            raise NotAConversation("is a list of texts, which does not say who speaks; give each a 'role'")
        return _named(row), _turns(row, "the list"), False
    if not isinstance(row, dict):
        raise NotAConversation(f"is {_kind(row)} where an object or a list of messages is due; {_remedy()}")
    whole = _lowered(row)
    row = _without_nulls(whole)
    if "chosen" in row and "rejected" in row:
        prompt, chosen, _ = _preference(row)
        notes.unused |= set(row) - {"prompt", "chosen", "rejected", *QUESTIONS, *CONTEXTS, *SYSTEMS}
        return "preference pairs, of which the chosen answers are read", [*prompt, *chosen], False
    _check_media(row)
    for key in MESSAGE_LISTS:
        if isinstance(row.get(key), list | dict) and (key != "data" or len(row) <= 3):
            system = [one for one in SYSTEMS if isinstance(row.get(one), str) or _is_list(row.get(one))][:1]
            label = row.get("label") if isinstance(row.get("label"), bool) else None
            notes.unused |= set(row) - {key, *system, *(["label"] if label is not None else [])}
            value = _rows_of_columns(row[key])
            turns = [*({"role": "system", "content": row[one]} for one in system), *_turns(value, f"'{key}'")]
            return _named(value), turns, label is False
    if _is_turn(row) and not _pair_keys(row) and "parent_id" not in whole:
        raise NotAConversation(
            "is a single message where a whole conversation is due; put the messages of a conversation into one list"
        )
    if pair := _pair_keys(row) or _pair_keys(whole):
        return _pair({key: "" for key in pair} | row, *pair, notes)
    if empty := next((key for key in (*MESSAGE_LISTS, "chosen", "rejected") if key in whole and key not in row), None):
        return f"'{empty}' is null", [], False
    raise NotAConversation(_what_it_looks_like(whole))


def _lowered(row: dict[Any, Any]) -> dict[str, Any]:
    """Returns a row with keys in small letters and parsed values."""
    names = {key: str(key).strip().lower() for key in row}
    return {name: _parsed(row[key], name) for key, name in names.items()}


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _check_media(row: dict[str, Any]) -> None:
    """Refuses a row with pictures, films or sound that its text speaks of."""
    key = next((key for key in MEDIA if row.get(key)), None)
    if key and PLACEHOLDER.search(json.dumps(row, ensure_ascii=False, default=str)):
        raise NotAConversation(
            f"has a placeholder such as <image> for what is under '{key}'; only text can be trained on: leave it out"
        )


def _named(turns: list[Any]) -> str:
    """Returns the name of the format of a list of turns."""
    if turns and all(isinstance(turn, str) for turn in turns):
        return "a list of texts (user and assistant in turn)"
    dicts = [turn for turn in turns if isinstance(turn, dict)]
    if any(turn.get("from") is not None for turn in dicts):
        return "ShareGPT (from, value)"
    if dicts and "role" not in dicts[0] and _pair_keys(dicts[0]):
        return "a list of pairs"
    tools = any(turn.get("tool_calls") or turn.get("function_call") or turn.get("role") == "tool" for turn in dicts)
    return "messages (role, content) with tool calls" if tools else "messages (role, content)"


def _names_a_format(row: dict[str, Any]) -> bool:
    return _is_turn(row) or "chosen" in row or bool(_pair_keys(row)) or any(key in row for key in MESSAGE_LISTS[:-1])


def _is_turn(value: Any) -> bool:
    """Returns whether a value is one turn of a conversation (a list's first item tells what the list is)."""
    return isinstance(value, str) or (isinstance(value, dict) and bool({"role", "from"} & set(value)))


def _pair_keys(row: dict[str, Any]) -> tuple[str, str] | None:
    """Returns the keys of the question and of the answer; None where the row has not both."""
    keys = [str(key).strip().lower() for key in row]
    question = next((key for key in QUESTIONS if key in keys), None)
    answer = next((key for key in ANSWERS if key in keys and key != question), None)
    return (question, answer) if question and answer else None


def _pair(row: dict[str, Any], question: str, answer: str, notes: Notes) -> tuple[str, list[Any], bool]:
    if "choices" in row or "options" in row:
        raise NotAConversation(
            f"looks like a multiple-choice exam (keys {_keys(row)}); use the tasks mmlu=PATH or arc-easy=PATH, "
            "or write it as messages"
        )
    asked = _asked(row, question, answer)
    told = row[answer]
    if isinstance(told, str):
        told = [{"role": "assistant", "content": told}]
    elif not isinstance(told, list | dict) or (isinstance(told, dict) and not {"role", "from"} & set(told)):
        raise NotAConversation(f"has {_kind(told)} under '{answer}' where text is due; write it as text")
    used = {question, answer, *CONTEXTS, *SYSTEMS, "history"}
    label = _label(row, (question, answer))
    notes.unused |= set(row) - used - ({"label"} if label is not None else set())
    alpaca = question == "instruction" and answer == "output"
    name = "Alpaca (instruction, input, output)" if alpaca else f"{question} and {answer}"
    return name, [*asked, *_message_list(told, answer)], label is False


def _label(row: dict[str, Any], pair: tuple[str, str]) -> bool | None:
    """Returns whether the answer is marked as a good one; None where it is not marked.

    Of prompt and completion (TRL's KTO format) the label may also be 0 or 1, or text as in a csv file.
    """
    label = row.get("label")
    if isinstance(label, bool) or label is None or pair != ("prompt", "completion"):
        return label if isinstance(label, bool) else None
    return LABELS.get(str(label).strip().lower())


def _asked(row: dict[str, Any], question: str, answer: str) -> list[Any]:
    """Returns the raw messages before the answer: system, history, and the question with what belongs to it."""
    system = next((row[key] for key in SYSTEMS if row.get(key)), None)
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(past, list) and len(past) == 2 for past in history):
        raise NotAConversation("has a 'history' that is no list of pairs [question, answer]; remove or mend it")
    for past in history:
        messages += [{"role": "user", "content": past[0]}, {"role": "assistant", "content": past[1]}]
    asked = row[question]
    if isinstance(asked, list | dict):
        return messages + _message_list(asked, question)
    if isinstance(asked, str) and (cue := next((cue for cue in ANSWER_CUES if asked.rstrip().endswith(cue)), None)):
        raise NotAConversation(
            f"has a chat that is written out as text under '{question}' (it ends with {cue.strip()}); take the data "
            "that it was made from, or divide it into messages"
        )
    key = next((key for key in CONTEXTS if key in row and key not in (question, answer)), None)
    for name in (question, key):
        if name and not isinstance(row[name], str):
            raise NotAConversation(f"has {_kind(row[name])} under '{name}' where text is due; write it as text")
    context = row[key] if key else ""
    text = JOIN.join(text for text in (asked, context) if text.strip())
    return [*messages, {"role": "user", "content": text}]


def _message_list(value: Any, key: str) -> list[Any]:
    value = [value] if isinstance(value, dict) else value
    if not all(isinstance(turn, dict) for turn in value):
        raise NotAConversation(f"has a list under '{key}' that holds no messages; write one text, or messages")
    return _turns(value, f"'{key}'")


def _preference(row: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns the raw messages of prompt, chosen and rejected; TRL finds a prompt that stands in both answers."""
    from trl.data_utils import maybe_extract_prompt

    question = next((key for key in ("prompt", *QUESTIONS) if row.get(key) is not None), None)
    sides: dict[str, Any] = {}
    for key in ("chosen", "rejected"):
        value = row.get(key)
        if isinstance(value, str):
            sides[key] = [{"role": "assistant", "content": value}] if question else _transcript(value)
        elif isinstance(value, list | dict) and value:
            sides[key] = _message_list(value, key)
        else:
            raise NotAConversation(f"has no answer under '{key}'; a preference pair has prompt, chosen and rejected")
    if any(len(side) > 1 and side[0].get("role") != "assistant" for side in sides.values()):
        found = maybe_extract_prompt(sides)
        given = _message_list(row[question], question) if question and isinstance(row[question], list) else []
        if len(given) > len(found["prompt"]) and given[len(given) - len(found["prompt"]) :] == found["prompt"]:
            found["prompt"] = given  # a system message, or earlier turns, that the answers' lists leave out
        system = next((row[key] for key in SYSTEMS if row.get(key)), None)
        prompt = [*([{"role": "system", "content": system}] if system else []), *found["prompt"]]
        return prompt, found["chosen"], found["rejected"]
    if question is None:
        raise NotAConversation("has 'chosen' and 'rejected' without a prompt; add it as 'prompt'")
    if isinstance(row[question], str) and re.fullmatch(r"\s*Human: .*\n\nAssistant:\s*", row[question], re.DOTALL):
        row = row | {question: _transcript(row[question].strip())}
    return _asked(row, question, "chosen"), sides["chosen"], sides["rejected"]


def _transcript(text: str) -> list[Message]:
    """Reads text with "\\n\\nHuman: " and "\\n\\nAssistant: " before the turns."""
    pieces = re.split(r"(?:^|\n\n)(Human|Assistant): ?", text)
    if len(pieces) < 3 or pieces[0].strip():
        raise NotAConversation(
            "has 'chosen' and 'rejected' without a 'prompt'; add 'prompt', or begin the turns with "
            "'\\n\\nHuman: ' and '\\n\\nAssistant: '"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": said.strip()} for name, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _turns(value: Any, where: str) -> list[Any]:
    """Returns raw messages with role and content, from a list in any known form."""
    if not isinstance(value, list):
        raise NotAConversation(f"has {_kind(value)} under {where} where a list of messages is due; {_remedy()}")
    if not value:
        return []
    if all(isinstance(turn, str) for turn in value):
        return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(value)]
    # A table fills the keys that other rows have with null.
    empty = [key for key in ("from", "value") if all(isinstance(t, dict) and t.get(key) is None for t in value)]
    value = [{k: v for k, v in turn.items() if k not in empty} if isinstance(turn, dict) else turn for turn in value]
    if any(isinstance(turn, dict) and {"from", "value"} & set(turn) for turn in value):
        from trl.data_utils import maybe_convert_to_chatml

        return maybe_convert_to_chatml({"messages": value})["messages"]
    first = value[0]
    if isinstance(first, dict) and "role" not in first and (pair := _pair_keys(first)):
        messages = []
        for turn in value:
            if not isinstance(turn, dict) or not set(pair) <= set(turn):
                raise NotAConversation(f"must have '{pair[0]}' and '{pair[1]}' in each item of {where}")
            if turn.get("system"):
                messages.append({"role": "system", "content": turn["system"]})
            messages += [{"role": "user", "content": turn[pair[0]]}, {"role": "assistant", "content": turn[pair[1]]}]
        return messages
    return value


def _rows_of_columns(value: Any) -> Any:
    """Turns lists side by side, `{"from": [...], "value": [...]}`, into a list of messages."""
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) == 1:
            return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return value


def _parsed(value: Any, key: str = "") -> Any:
    """Parses a list of messages that a table keeps as JSON text. NaN, as pandas writes it, is null.

    The rest stays as it is: an answer may be JSON.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str) and value.lstrip().startswith("[{") and value.rstrip().endswith("}]"):
        try:
            read = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
        return read if key in MESSAGE_LISTS or {"role", "from"} & set(read[0]) else value
    return value


def _what_it_looks_like(row: dict[str, Any]) -> str:
    if not row:
        return f"is an empty object; {_remedy()}"
    if {"parent_id", "message_id"} <= set(row) or "message_tree_id" in row:
        return "looks like a message tree of OpenAssistant; convert each path of the tree to a list of messages first"
    written = next((key for key in MESSAGE_LISTS if isinstance(row.get(key), str)), None)
    if written:
        return f"has text under '{written}' where a list of messages is due; write that list as JSON (json.dumps)"
    texts = [
        row[key] for key in ("text", "content", "document", "raw_content", "body") if isinstance(row.get(key), str)
    ]
    if mark := next((mark for mark in WRITTEN_CHATS for text in texts if mark in text), None):
        return (
            f"looks like a chat that is written out as text ({mark.strip()}); take the data it was made from, or "
            "divide it into messages"
        )
    if texts and not set(row) & {*QUESTIONS, *ANSWERS}:
        return (
            f"looks like plain text (keys {_keys(row)}), not like a chat; give it to pretraining (--data), or write "
            'it as {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        )
    if "mapping" in row:
        return "looks like an export of ChatGPT (key 'mapping'); convert it to a list of messages first"
    if "contents" in row:
        return "looks like Gemini's format (key 'contents'); give 'messages' with 'role' and 'content' instead"
    if "prompt" in row:
        return f"looks like prompts without answers (keys {_keys(row)}); add the answers as 'completion'"
    if set(row) & {*QUESTIONS}:
        return f"looks like questions without an answer (keys {_keys(row)}); add one text as 'answer'"
    return f"has the keys {_keys(row)}, which are of no known format; {_remedy()}"


def _remedy() -> str:
    return f"known formats: {KNOWN_FORMATS}"


def _keys(row: dict[str, Any]) -> str:
    names = [repr(name) for name in row]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


# ---- from raw messages to a conversation of our template -----------------------------


def canonical(messages: Iterable[Any], notes: Notes, changed: set[str]) -> list[Message] | None:
    """Brings messages with role and content into the form that the template renders.

    Args:
        messages: dicts with `role`, `content` and what OpenAI's format adds for tools.
        notes: receives unused keys and names of tools.
        changed: receives the rules that changed something.

    Returns:
        New messages; None where no answer is left.

    Raises:
        NotAConversation: a message has no known role, or holds something else than text.
    """
    system: list[str] = []
    turns: list[tuple[str, list[Message]]] = []  # of user and assistant in turn: (role, parts)
    waiting: list[tuple[Any, Message]] = []  # calls whose results have not come: (id, the call's part)
    for number, message in enumerate(messages, 1):
        role, parts, calls = _read_message(message, number, notes)
        if role == "tool":
            _add_result(turns, waiting, message, "".join(part["text"] for part in parts), number)
            continue
        if not calls and not "".join(part["text"] for part in parts).strip():
            changed.add("empty messages are left out")
            continue
        if role == "system":
            if not turns:
                if system:
                    changed.add("several system messages are joined")
                system.append("".join(part["text"] for part in parts))
                continue
            changed.add("a later system message becomes part of the user's turn")
            role = "user"
        if not turns or turns[-1][0] != role:
            waiting = []
            turns.append((role, []))
        elif parts and turns[-1][1] and turns[-1][1][-1]["type"] == parts[0]["type"] == "text":
            changed.add("consecutive messages of one role are joined")
            turns[-1][1].append({"type": "text", "text": JOIN})
        turns[-1][1].extend(parts)
        for identity, call in calls:
            turns[-1][1].append(call)
            waiting.append((identity, call))
    if turns and turns[0][0] == "assistant":
        changed.add("what the assistant says before the user is left out")
        del turns[0]
    if turns and turns[-1][0] == "user":
        changed.add("a last message without an answer is left out")
        del turns[-1]
    if not turns:
        return None
    conversation = [{"role": role, "content": _content(parts)} for role, parts in turns]
    if system:
        conversation.insert(0, {"role": "system", "content": JOIN.join(system)})
    for message in conversation:
        for holder, key in _texts(message):
            if (text := without_lone_surrogates(holder[key])) != holder[key]:
                changed.add("halves of characters (lone surrogates) are replaced by U+FFFD")
                holder[key] = text
    return conversation


def _texts(message: Message) -> list[tuple[dict[str, Any], str]]:
    """Returns where the texts of a message are: (dict, key) pairs."""
    if isinstance(message["content"], str):
        return [(message, "content")]
    return [(part, "text") for part in message["content"]]


def _read_message(message: Any, number: int, notes: Notes) -> tuple[str, list[Message], list[tuple[Any, Message]]]:
    """Returns a message's role, its parts, and its calls with their ids."""
    if not isinstance(message, dict):
        raise NotAConversation(f"message {number} is {_kind(message)} where an object with role and content is due")
    named = message.get("role")
    role = ROLE_OF.get(named.strip().lower()) if isinstance(named, str) else None
    if named is None:
        raise NotAConversation(f"message {number} has no role (keys {_keys(message)}); give 'role' and 'content'")
    if role is None:
        raise NotAConversation(
            f"message {number} has the role {named!r}; known are {', '.join(ROLE_OF)}; rename it or leave it out"
        )
    raw_calls = message.get("tool_calls") or message.get("function_call")
    if "content" not in message and not raw_calls:
        raise NotAConversation(f"message {number} has no content (keys {_keys(message)}); give 'role' and 'content'")
    for key in ("weight", "train"):
        if role == "assistant" and LABELS.get(str(message.get(key)).strip().lower()) is False:
            raise NotAConversation(
                f"message {number} has the {key} {message[key]}, and single messages cannot be kept out of training; "
                "remove that key, or end the conversation before that message"
            )
    message = {key: value for key, value in message.items() if _parsed(value) is not None}
    known = {"role", "content", "tool_calls", "function_call", "tool_call_id", "name", "id"}
    known |= {key for key in ("weight", "train") if message.get(key) == 1}
    notes.unused |= {f"{key} of messages" for key in set(message) - known}
    if named.strip().lower() in CALL_ROLES:
        return role, [], [(None, call) for call in _calls(message.get("content", ""), number, notes)]
    calls = []
    if role == "assistant" and raw_calls:
        raw_calls = _loaded(raw_calls)
        raw_calls = raw_calls if isinstance(raw_calls, list) else [raw_calls]
        for raw in raw_calls:
            identity = raw.get("id") if isinstance(raw, dict) else None
            calls += [(identity, call) for call in _calls(raw, number, notes)]
    return role, _parts(message.get("content", ""), role, number), calls


def _parts(content: Any, role: str, number: int) -> list[Message]:
    """Returns a content as parts of type text, for the assistant also python and python_output."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if role == "tool" and not _are_parts(content):  # a result that is data
        return [{"type": "text", "text": json.dumps(content, ensure_ascii=False)}]
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if not isinstance(content, list):
        raise NotAConversation(f"message {number} has {_kind(content)} as its content where text is due")
    parts = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS and not (kind in OWN_PARTS and role == "assistant"):
            shown = repr(kind) if kind else _kind(part)
            raise NotAConversation(
                f"message {number} has a part of type {shown}; only text can be trained on, so take that part out"
            )
        if not isinstance(part.get("text"), str):
            raise NotAConversation(f"message {number} has a part of type {kind!r} without a 'text'")
        parts.append({"type": "text" if kind in TEXT_PARTS else kind, "text": part["text"]})
    return parts


def _are_parts(content: Any) -> bool:
    parts = content if isinstance(content, list) else [content]
    return all(isinstance(part, str) or (isinstance(part, dict) and "type" in part) for part in parts)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _calls(raw: Any, number: int, notes: Notes) -> list[Message]:
    """Returns the python parts for a call: the expression for the calculator, else JSON with name and arguments.

    `raw` is an object with `function` or with `name` and `arguments`, a list of such objects, or either as JSON text.
    Text that is no JSON is written as it is.
    """
    raw = _loaded(raw)
    if isinstance(raw, list):
        return [call for one in raw for call in _calls(one, number, notes)]
    function = raw.get("function", raw) if isinstance(raw, dict) else raw
    if isinstance(function, str) and not isinstance(raw, dict):
        return [{"type": "python", "text": function, "called": True}]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise NotAConversation(f"message {number} has a tool call without a name; give 'name' and 'arguments'")
    name, arguments = function["name"], _loaded(function.get("arguments", function.get("parameters", {})))
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict | str):
        raise NotAConversation(
            f"message {number} has a call of {name!r} whose arguments are {_kind(arguments)} where an object is due"
        )
    if name == "calculator":
        expression = arguments.get("expression") if isinstance(arguments, dict) else arguments
        if isinstance(expression, str):
            return [{"type": "python", "text": expression, "called": True}]
    if name not in TOOLS:
        notes.other_tools.add(name)
    return [{"type": "python", "text": written_call(name, arguments), "called": True}]


def _loaded(value: Any) -> Any:
    """Parses JSON text that holds an object or a list; returns anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _add_result(
    turns: list[tuple[str, list[Message]]],
    waiting: list[tuple[Any, Message]],
    message: Message,
    text: str,
    number: int,
) -> None:
    """Puts a tool's result behind its call: the one with the same id, else the first that waits for a result."""
    if not turns or turns[-1][0] != "assistant":
        raise NotAConversation(
            f"message {number} is the result of a tool, and no message of the assistant is before it"
        )
    parts, identity = turns[-1][1], message.get("tool_call_id") or message.get("id")
    place = next((i for i, (one, _) in enumerate(waiting) if identity is not None and one == identity), 0)
    result = {"type": "python_output", "text": text}
    if not waiting:
        parts.append(result)
        return
    _, call = waiting.pop(place)
    parts.insert(next(i for i, part in enumerate(parts) if part is call) + 1, result)


def _content(parts: list[Message]) -> str | list[Message]:
    """Returns parts as a content: text where all are text, else a list in which each text is one part."""
    merged: list[Message] = []
    for index, part in enumerate(parts):
        if merged and merged[-1]["type"] == part["type"] == "text":
            merged[-1]["text"] += part["text"]
        else:
            merged.append({"type": part["type"], "text": part["text"]})
        following = parts[index + 1]["type"] if index + 1 < len(parts) else None
        if part.get("called") and following != "python_output":
            result = run_call(part["text"])  # a call without a result: what the model will see there
            merged += [{"type": "python_output", "text": result}] if result is not None else []
    if all(part["type"] == "text" for part in merged):
        return "".join(part["text"] for part in merged)
    return [part for part in merged if part["type"] != "text" or part["text"]]
