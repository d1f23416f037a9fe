"""Conversations to learn from and to be scored on; one file a task.

Recipes and command lines name a task with a short string, read by `load`:

    name[/split][=source][@limit][*repeat]

    gsm8k                        every problem of the stage's split, from the Hub
    gsm8k=data/gsm8k*4           the same from a folder, seen four times
    mmlu/validation=data/mmlu    another split than the stage's own
    smoltalk@10000               the first 10,000 conversations
    conversations=my_chats.jsonl one's own file
"""

import re
from collections.abc import Iterable
from typing import Any

from nanochat_hf.settings import UserError

SPEC = re.compile(
    r"(?P<name>[\w-]+)(?:/(?P<split>\w+))?(?:=(?P<source>.+?))?(?:@(?P<limit>\d+))?(?:\*(?P<repeat>\d+))?"
)
NAMES = (
    "smoltalk", "conversations", "gsm8k", "mmlu", "arc-easy", "arc-challenge", "humaneval",
    "spelling", "spelling-bee",
    "microworld-chat", "microworld-identity", "microworld-exam", "microworld-problems", "microworld-spelling",
    "microworld-code",
)  # fmt: skip


def load(spec: str, split: str) -> tuple[Any, int]:
    """Makes the task that `spec` names.

    Args:
        spec: see above.
        split: `"train"`, `"validation"` or `"test"`; taken where the spec names none.

    Returns:
        The task and how often it is to be repeated.

    Raises:
        UserError: the spec has another form, or names an unknown task or a source that does not exist.
    """
    found = SPEC.fullmatch(spec.strip())
    if found is None:
        raise UserError(f"cannot read the task '{spec}'; the form is name[/split][=source][@limit][*repeat]")
    limit = int(found["limit"]) if found["limit"] else None
    options = {"split": found["split"] or split, "limit": limit}
    if found["source"]:
        options["source"] = found["source"]
    return _make(found["name"], options), int(found["repeat"] or 1)


def check_code_execution(tasks: Iterable[Any], allowed: bool) -> None:
    """Refuses tasks that run what the model wrote where that has not been allowed.

    Raises:
        UserError: names the task and the option.
    """
    for task in tasks:
        if task.runs_code and not allowed:
            raise UserError(
                f"{task.name} runs programs that the model wrote; add --allow_code_execution to run them in the "
                "sandbox, or leave the task out"
            )


def _make(name: str, options: dict[str, Any]) -> Any:
    match name:
        case "smoltalk":
            from nanochat_hf.tasks.smoltalk import SmolTalk

            return SmolTalk(**options)
        case "conversations":
            from nanochat_hf.tasks.custom_json import CustomJSON

            del options["split"]  # a file of one's own is taken whole
            if "source" not in options:
                raise UserError("the task 'conversations' needs a file: conversations=PATH.jsonl")
            return CustomJSON(**options)
        case "gsm8k":
            from nanochat_hf.tasks.gsm8k import GSM8K

            return GSM8K(**options)
        case "mmlu":
            from nanochat_hf.tasks.mmlu import MMLU

            if options["split"] == "train":  # MMLU has no training split of its own
                options["split"] = "auxiliary_train"
            return MMLU(**options)
        case "arc-easy" | "arc-challenge":
            from nanochat_hf.tasks.arc import ARC

            return ARC({"arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge"}[name], **options)
        case "humaneval":
            from nanochat_hf.tasks.humaneval import HumanEval

            return HumanEval(**options)
        case "spelling":
            from nanochat_hf.tasks.spelling import SimpleSpelling

            return SimpleSpelling(**options)
        case "spelling-bee":
            from nanochat_hf.tasks.spelling import SpellingBee

            return SpellingBee(**options)
        case _ if name.startswith("microworld-") and name in NAMES:
            from nanochat_hf.tasks import microworld

            return microworld.make(name.removeprefix("microworld-"), **options)
    raise UserError(f"there is no task '{name}'; known are {', '.join(NAMES)}")
