"""The base classes of all tasks, and how a multiple-choice question is written.

A task is a list of conversations with a way to score answers. Each conversation ends with the reference answer as the
assistant's message; `score` judges what a model says in its place. For training only the conversations are used.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from nanochat_hf.data.decoding import without_lone_surrogates
from nanochat_hf.settings import UserError

LETTERS = ("A", "B", "C", "D")
ROLES = ("system", "user", "assistant", "tool")
PARTS = ("text", "python", "python_output")  # of an assistant's message
FINAL_NUMBER = re.compile(r"#### (-?[0-9.,]+)")


class Task:
    """A list of examples to train on or to score a model with.

    An example is a conversation `{"messages": [...]}` that ends with the reference answer. It may have more keys for
    `score` or an evaluation: `letters` and `answer` in a choice task, `entry_point` and `test` in a code task.

    A new task sets `name`, reads its rows in `__init__`, and defines `example` and `score`.

    Attributes:
        name: the name under which scores are reported.
        kind: how an evaluation answers. `"choice"`: the largest logit of `example["letters"]` is the answer.
            `"generative"`: the answer is sampled.
        baseline: the score of random guessing, 0 to 1.
        runs_code: whether `score` runs code that the model wrote.
        has_score: whether answers can be scored; False for tasks that are only trained on.

    Args:
        rows: the rows of the source; `example` makes a conversation of each when it is asked for.
        limit: use only the first so many rows; default: all.
    """

    name: str = ""
    kind: Literal["choice", "generative"] = "generative"
    baseline: float = 0.0
    runs_code: bool = False
    has_score: bool = True

    def __init__(self, rows: Sequence[Any], limit: int | None = None):
        self.rows = rows if limit is None else rows[:limit]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.example(self.rows[index])
        if fault := _fault_of(example):
            raise UserError(
                f"example {index} of the task {self.name} is no conversation: {fault}; let `example` return "
                '{"messages": [...]} with role and content in each message, the assistant\'s last'
            )
        return example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def example(self, row: Any) -> dict[str, Any]:
        """Makes an example of one row of the source: a dict with at least `"messages"`."""
        raise NotImplementedError

    def score(self, example: dict[str, Any], completion: str) -> float:
        """Returns 1.0 for a right and 0.0 for a wrong completion.

        Args:
            example: what `example` returned.
            completion: the text that the model wrote as the assistant's message.
        """
        raise NotImplementedError


def _fault_of(example: Any) -> str | None:
    """Why an example can be neither trained on nor asked, in words; None where it can."""
    if not isinstance(example, dict):
        return f"it is {example!r:.60}"
    if "text" in example:
        return _fault_of_text(example["text"], "its text")
    messages = example.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        return f"its messages are {messages!r:.60}"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"message {number} is {message!r:.60}, without a role from {', '.join(ROLES)}"
        if message["role"] == "system" and number > 1:
            return f"message {number} is the system's, which can only come first"
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
        for part in parts:
            if not isinstance(part, dict) or part.get("type") not in PARTS:
                return f"a part of message {number} is {part!r:.60}, without a type from {', '.join(PARTS)}"
            if fault := _fault_of_text(part.get("text"), f"the content of message {number}"):
                return fault
    return None if messages[-1]["role"] == "assistant" else f"its last message is from the {messages[-1]['role']}"


def _fault_of_text(text: Any, called: str) -> str | None:
    if not isinstance(text, str):
        return f"{called} is {text!r:.60} instead of text"
    whole = without_lone_surrogates(text) == text
    return None if whole else f"{called} holds half of a surrogate pair, which is no character"


def score_of(task: Task, example: dict[str, Any], completion: str) -> float:
    """Returns what a task's scorer says about a completion.

    Raises:
        UserError: that is no finite number, which would end in weights or means that are none.
    """
    score = task.score(example, completion)
    if not is_finite(score):
        raise UserError(
            f"score of the task {task.name} returned {score!r:.60}; return a number, 1.0 for a right answer"
        )
    return float(score)


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number, of Python, numpy or torch."""
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except (TypeError, ValueError, RuntimeError):
        return False


class ChoiceTask(Task):
    """Multiple choice: the answer is one letter, in `example["answer"]`. The baseline is that of four choices."""

    kind = "choice"
    baseline = 0.25

    def score(self, example: dict[str, Any], completion: str) -> float:
        return float(completion.strip() == example["answer"])


def choice_example(question: str, choices: Sequence[str], letters: Sequence[str], answer: str) -> dict[str, Any]:
    """Writes a multiple-choice question as a conversation, with upstream's wording.

    The letter follows its choice (`- Paris=A`). Small models connect a letter more easily with what they have just
    read, and most easily where `=A` is one token (docs/log.md).

    Args:
        question: the question's text.
        choices: the answers to choose from.
        letters: the letter of each choice.
        answer: the letter of the right choice.

    Returns:
        `{"messages": [user, assistant], "letters": [...], "answer": letter}`.
    """
    options = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True))
    prompt = f"Multiple Choice question: {question}\n{options}\nRespond only with the letter of the correct answer."
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "letters": list(letters), "answer": answer}


def final_number(text: str) -> str | None:
    """Returns the number after the first `#### ` as text, without thousands separators; None where there is none."""
    found = FINAL_NUMBER.search(text)
    return found.group(1).replace(",", "") if found else None


def message_text(message: dict[str, Any]) -> str:
    """Returns the text of a message. Where the content is a list of parts, the parts are joined."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
