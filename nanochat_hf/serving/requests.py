"""What a request may contain, and what it asks for. A wrong request gets one sentence that names the field."""

import copy
import json
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
DEFAULT_MAX_TOKENS = 1024  # of an answer, where the request does not say


def check_messages(body: dict[str, Any]) -> None:
    """Checks that the messages of a chat request can be rendered.

    Raises:
        ValueError: they cannot; the text names the message.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"messages[{index}] must be an object whose role is one of {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str) or "type" not in part:
                raise ValueError(f"messages[{index}].content must be text, or a list of parts of type text")


def check_sampling(body: dict[str, Any]) -> None:
    """Checks the range of the sampling settings.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """
    ranges = {
        "temperature": (0, 10, "between 0 (always the likeliest token) and 10"),
        "top_p": (1e-9, 1, "above 0 and at most 1"),
    }
    for name, (low, high, words) in ranges.items():
        value = body.get(name)
        if value is not None and (not _is_number(value, float) or not low <= value <= high):
            raise ValueError(f"{name} must be a number {words}, not {json.dumps(value)}")
    for name, least in {"max_tokens": 1, "max_completion_tokens": 1, "top_k": 0, "seed": 0}.items():
        value = body.get(name)
        if value is not None and (not _is_number(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {json.dumps(value)}")


def limit_new_tokens(body: dict[str, Any], prompt_length: int, context_length: int) -> dict[str, Any]:
    """Returns the request with a limit of new tokens that fits in the context. Lengths are in tokens.

    Raises:
        ValueError: the prompt fills the whole context.
    """
    if prompt_length >= context_length:
        raise ValueError(
            f"the prompt has {prompt_length} tokens, and the model reads {context_length}: please shorten it"
        )
    names = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    limits = {
        name: min(body.get(name) or DEFAULT_MAX_TOKENS, context_length - prompt_length)
        for name in names or ["max_tokens"]
    }
    return {**body, **limits}


def generation_config(body: dict[str, Any], defaults: Any) -> Any:
    """Returns what a chat request asks for, as a `GenerationConfig`; what it does not say is as in `defaults`.

    A temperature above 0 means sampling, also if `defaults` says greedy.

    Raises:
        ValueError, TypeError: a field cannot be read.
    """
    config = copy.deepcopy(defaults)
    config.max_new_tokens = body.get("max_completion_tokens") or body["max_tokens"]
    if body.get("temperature") is not None:
        config.temperature, config.do_sample = float(body["temperature"]), body["temperature"] > 0
    if body.get("top_p") is not None:
        config.top_p = float(body["top_p"])
    if body.get("top_k") is not None:
        config.top_k = body["top_k"] or None
    if body.get("frequency_penalty") is not None:
        config.repetition_penalty = 1.0 + float(body["frequency_penalty"])
    if body.get("logit_bias") is not None:
        config.sequence_bias = {(int(token),): bias for token, bias in body["logit_bias"].items()}
    if body.get("stop") is not None:
        config.stop_strings = body["stop"]
    return config


def for_transformers(body: dict[str, Any], defaults: Any) -> dict[str, Any]:
    """Returns the request as transformers' handlers understand it.

    They do not know `top_k`, and they sample only if the model's `generation_config` says so, whatever the temperature
    is. Both travel in the request's field `generation_config`.

    Raises:
        ValueError: the request's own `generation_config` cannot be read.
    """
    body = dict(body)
    given = body.get("generation_config")
    config = defaults.to_dict() if given is None else _read_json_object("generation_config", given)
    top_k, temperature = body.pop("top_k", None), body.get("temperature")
    if top_k is None and temperature is None:
        return body
    if temperature is not None:
        config["do_sample"] = temperature > 0
    if top_k is not None:
        config["top_k"] = top_k or None
    return {**body, "generation_config": json.dumps(config)}


def _read_json_object(name: str, text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, TypeError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be text that holds a JSON object, not {json.dumps(text)}")
    return value


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
