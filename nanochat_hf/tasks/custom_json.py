"""Conversations from one's own files: JSON Lines, each line an array of messages.

    [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]

A line may also be an object with that array under `messages`. A leading system message is allowed; after it user and
assistant take turns, starting with the user, and the assistant has the last word.
"""

import os
from pathlib import Path
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.common import Task, read_file

PART_TYPES = ("text", "python", "python_output")


class CustomJSON(Task):
    """Args: `source` a .jsonl file or a folder of them.

    Raises:
        UserError: naming file and line, where a line is not a conversation.
    """

    name = "conversations"

    def __init__(self, source: str | os.PathLike, limit: int | None = None):
        path = Path(source)
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise UserError(f"there are no conversations at {path}: give a .jsonl file, or a folder with such files")
        super().__init__([row for file in files for row in read_conversations(file)], limit)

    def example(self, row: list[dict[str, Any]]) -> dict[str, Any]:
        return {"messages": row}

    def score(self, example: dict[str, Any], completion: str) -> float:
        """1.0 for the reference answer word for word, which only makes sense for data with one right answer."""
        return float(completion.strip() == str(example["messages"][-1]["content"]).strip())


def read_conversations(path: Path) -> list[list[dict[str, Any]]]:
    """Reads one file and checks every line of it."""
    conversations = []
    for number, row in enumerate(read_file(path), 1):
        messages = row.get("messages") if isinstance(row, dict) else row
        fault = conversation_fault(messages)
        if fault:
            raise UserError(f"{path}, conversation {number}: {fault}")
        conversations.append(messages)
    return conversations


def conversation_fault(messages: Any) -> str | None:
    """Says what keeps `messages` from being a conversation, or returns None."""
    if not isinstance(messages, list):
        return "must be an array of messages, or an object with such an array under 'messages'"
    start = 1 if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system" else 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"message {index + 1} must be an object with 'role' and 'content'"
        if index >= start:
            expected = "user" if (index - start) % 2 == 0 else "assistant"
            if message["role"] != expected:
                return f"message {index + 1} has the role '{message['role']}' where '{expected}' is due"
        if not _content_ok(message):
            return f"message {index + 1} must have text as its content"
    if len(messages) - start < 2:
        return "needs at least one message of the user and one of the assistant"
    return None if messages[-1]["role"] == "assistant" else "must end with a message of the assistant"


def _content_ok(message: dict[str, Any]) -> bool:
    content = message["content"]
    if isinstance(content, str):
        return True
    return (
        message["role"] == "assistant"
        and isinstance(content, list)
        and all(isinstance(part, dict) and part.get("type") in PART_TYPES for part in content)
        and all(isinstance(part.get("text"), str) for part in content)
    )
