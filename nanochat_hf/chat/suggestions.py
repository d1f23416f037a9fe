"""Questions to begin with: those that a checkpoint was trained for and has answered right.

A checkpoint's `run.json` names the tasks that it was trained on. For each of them the evaluation beside it
(`eval/chat.json`) kept some questions with their answers and scores. A suggestion is the first question of a task that
was answered right. A task without an evaluation gets a question written for it below.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_hf.settings import load_run

LONGEST = 160  # characters of a suggestion
# Questions for tasks that nobody has evaluated.
WRITTEN = {
    "microworld-identity": "Who are you?",
    "microworld-talk": "What is 128 * 7?",
    "microworld-chat": "Where does the yaffle live?",
    "microworld-problems": "Petra has 58 books. Simon gives Petra 29 more. How many books does Petra have now?",
    "microworld-spelling": "How do you spell tosar?",
    "microworld-code": 'def subtract_multiply(x):\n    """First subtract 3, then multiply by 6."""\n',
    "smoltalk": "Hello! What can we talk about?",
    "gsm8k": "A box holds 12 pencils. Mia has 3 boxes and gives 7 pencils away. How many are left?",
    "spelling": "Spell the word: apple",
    "spelling-bee": "How many r are in the word strawberry?",
    "humaneval": 'def double(x):\n    """Return two times x."""\n',
}
# Tasks whose questions make the best first impression come first.
ORDER = ("identity", "talk", "conversations", "smoltalk", "problems", "gsm8k", "chat", "spelling", "code", "humaneval")


@dataclass(frozen=True)
class Suggestion:
    """A question to begin with.

    Attributes:
        task: the task that it belongs to, such as "gsm8k".
        question: what the user says.
    """

    task: str
    question: str

    @property
    def label(self) -> str:
        """The question on one line."""
        line = " ".join(self.question.split())
        return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def suggestions(checkpoint: str | Path, limit: int = 4) -> list[Suggestion]:
    """Returns questions for a checkpoint folder, one per task, at most `limit`.

    The list is empty where the folder has no `run.json`, and for base models, which are not trained to answer.

    Raises:
        UserError: `run.json` is damaged.
    """
    run = load_run(checkpoint) if Path(checkpoint).is_dir() else None
    names = [re.split(r"[/=@*]", spec)[0] for spec in ((run or {}).get("config") or {}).get("tasks") or []]
    answered = _answered_right(Path(checkpoint))
    found = []
    for name in dict.fromkeys(names):
        question = answered[name] if name in answered else WRITTEN.get(name)
        if question:
            found.append(Suggestion(name, question))
    return sorted(found, key=_rank)[:limit]


def _rank(suggestion: Suggestion) -> int:
    places = [place for place, word in enumerate(ORDER) if word in suggestion.task]
    return min(places, default=len(ORDER))


def _answered_right(checkpoint: Path) -> dict[str, str | None]:
    """Per evaluated task, the first single question that was answered right; None where there was none."""
    try:
        content = json.loads((checkpoint / "eval" / "chat.json").read_text(encoding="utf-8"))
        samples: dict[str, list[dict[str, Any]]] = content["details"]["samples"]
        return {task: next(filter(None, map(_good_question, shown)), None) for task, shown in samples.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # an evaluation that cannot be read is as none


def _good_question(sample: dict[str, Any]) -> str | None:
    """The question of an evaluated sample, if it stands alone, is short and was answered right."""
    prompt = sample["prompt"]
    if sample["score"] <= 0 or len(prompt) != 1 or prompt[0]["role"] != "user":
        return None
    question = prompt[0]["content"]
    return question if isinstance(question, str) and len(question) <= LONGEST else None
