"""What a request must be, said to the client in one sentence."""

import json
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


def check_messages(body: dict[str, Any]) -> None:
    """Raises ValueError, in one sentence, for a chat request whose messages cannot be rendered."""
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
    """Raises ValueError for a setting that no sampler can follow."""
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


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
