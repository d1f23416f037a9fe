"""Your own conversations: JSON lines files, one conversation per line, as an array of messages.

    [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]

A line may also be an object with that array under `messages`. The first message may be a system message. After it user
and assistant alternate, the user first; the last message is the assistant's.
"""

import os
from pathlib import Path
from typing import Any

from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import Task
from nanochat_hf.tasks.reading import read_file

PART_TYPES = ("text", "python", "python_output")


class ConversationFiles(Task):
    """Conversations of a file or folder.

    Args:
        source: a .jsonl file, or a folder with such files.
        split: not used; your own files are read whole.
        limit: use only the first so many conversations.

    Raises:
        UserError: there is no such file, or a line is not a conversation; the message names file and line.
    """

    name = "conversations"

    def __init__(self, source: str | os.PathLike | None = None, split: str = "train", limit: int | None = None):
        if source is None:
            raise UserError("the task 'conversations' needs a file: conversations=PATH.jsonl")
        path = Path(source)
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise UserError(f"there are no conversations at {path}: give a .jsonl file, or a folder with such files")
        super().__init__([row for file in files for row in read_conversations(file)], limit)

    def example(self, row: list[dict[str, Any]]) -> dict[str, Any]:
        return {"messages": row}

    def score(self, example: dict[str, Any], completion: str) -> float:
        """Returns 1.0 for the reference answer word for word. This fits only data with one right answer each."""
        return float(completion.strip() == str(example["messages"][-1]["content"]).strip())


def read_conversations(path: Path) -> list[list[dict[str, Any]]]:
    """Reads one file and checks every conversation in it.

    Returns:
        The messages of each conversation.

    Raises:
        UserError: a line is not JSON or not a conversation; the message names the file and the place.
    """
    conversations = []
    for number, row in enumerate(read_file(path), 1):
        messages: Any = row.get("messages") if isinstance(row, dict) else row
        error = conversation_error(messages)
        if error:
            raise UserError(f"{path}, conversation {number}: {error}")
        conversations.append(messages)
    return conversations


def conversation_error(messages: Any) -> str | None:
    """Returns why `messages` is not a conversation, or None where it is one."""
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
        if not _has_text(message):
            return f"message {index + 1} must have text as its content"
    if len(messages) - start < 2:
        return "needs at least one message of the user and one of the assistant"
    return None if messages[-1]["role"] == "assistant" else "must end with a message of the assistant"


def _has_text(message: dict[str, Any]) -> bool:
    content = message["content"]
    if isinstance(content, str):
        return True
    return (
        message["role"] == "assistant"
        and isinstance(content, list)
        and all(isinstance(part, dict) and part.get("type") in PART_TYPES for part in content)
        and all(isinstance(part.get("text"), str) for part in content)
    )
