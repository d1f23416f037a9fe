"""Tasks: conversations to train on and to score a model with. One file per data set.

A task of your own is a class in a file of yours, named by its import path (docs/new-skill.md). To add one to this
package, write a class in a new file here (`mmlu.py` is a short example) and give it a name in `TASKS` below. The base
classes are in `base.py`, which says what a task must define.

Recipes and command lines name a task with a short string, read by `load`:

    name[/split][=source][@[~]limit][*repeat]

    gsm8k                        every problem of the stage's split, from the Hub
    gsm8k=data/gsm8k*4           the same from a folder, each example used four times
    mmlu/validation=data/mmlu    another split than the stage's own
    smoltalk@10000               the first 10,000 conversations of the file
    smoltalk@~10000              10,000 conversations at random: the first of upstream's shuffle, always the same
    conversations=my_chats.jsonl your own file
    preferences=my_pairs.jsonl   pairs of answers, for DPO
    documents=my_texts@300       300 pieces of plain text, which midtraining and SFT mix into the conversations
    my_tasks:CountLetters@500    the class CountLetters of your module my_tasks.py, installed or in the current folder

Several are a list, or joined by commas; a path of your own stands alone or first.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from nanochat_hf.data.files import file_format
from nanochat_hf.data.fingerprints import Fingerprint, of_files, of_text
from nanochat_hf.data.found import looks_like_hub_id
from nanochat_hf.settings import UserError, load_function, split_at_commas
from nanochat_hf.tasks import microworld
from nanochat_hf.tasks.arc import ARC
from nanochat_hf.tasks.base import Task
from nanochat_hf.tasks.conversation_files import ConversationFiles, PreferenceFiles
from nanochat_hf.tasks.documents import Documents, check_text
from nanochat_hf.tasks.gsm8k import GSM8K
from nanochat_hf.tasks.humaneval import HumanEval
from nanochat_hf.tasks.mmlu import MMLU
from nanochat_hf.tasks.smoltalk import SmolTalk
from nanochat_hf.tasks.spelling import SimpleSpelling, SpellingBee
from nanochat_hf.tools import sandbox

# Each is called with `split`, `limit` and, where the task's string names one, `source`.
TASKS: dict[str, Callable[..., Task]] = {
    "smoltalk": SmolTalk,
    "conversations": ConversationFiles,
    "preferences": PreferenceFiles,
    "documents": Documents,
    "gsm8k": GSM8K,
    "mmlu": MMLU,
    "arc-easy": partial(ARC, "ARC-Easy"),
    "arc-challenge": partial(ARC, "ARC-Challenge"),
    "humaneval": HumanEval,
    "spelling": SimpleSpelling,
    "spelling-bee": SpellingBee,
    "microworld-chat": microworld.MicroworldChat,
    "microworld-talk": microworld.MicroworldTalk,
    "microworld-words": microworld.MicroworldWords,
    "microworld-smalltalk": microworld.MicroworldSmallTalk,
    "microworld-copying": microworld.MicroworldCopying,
    "microworld-identity": microworld.MicroworldIdentity,
    "microworld-exam": microworld.MicroworldExam,
    "microworld-problems": microworld.MicroworldProblems,
    "microworld-spelling": microworld.MicroworldSpelling,
    "microworld-code": microworld.MicroworldCode,
}
MAX_REPEAT = 100_000  # of a task's examples; more would fill the memory with indices
SPEC = re.compile(
    r"(?P<name>[\w-]+|[\w.]+:\w+)(?:/(?P<split>\w+))?(?:=(?P<source>.+?))?(?:@(?P<shuffle>~?)(?P<limit>\d{1,18}))?(?:\*(?P<repeat>\d{1,18}))?"
)


def load(spec: str, split: str, limit: int | None = None) -> tuple[Task, int]:
    """Makes the task that `spec` names.

    Args:
        spec: `name[/split][=source][@[~]limit][*repeat]`, see the top of this module.
        split: `"train"`, `"validation"` or `"test"`; used where `spec` names no split.
        limit: use no more than so many examples, whatever `spec` says.

    Returns:
        The task, and how many times each of its examples is used.

    Raises:
        UserError: `spec` has another form, or names a task that does not exist or a source that cannot be read.
    """
    found = parts_of(spec)
    _check_name(found)
    name, source = str(found["name"]), found["source"]
    make = TASKS.get(name) or load_function(name, "--tasks")
    limits = [number for number in (limit, int(found["limit"]) if found["limit"] else None) if number is not None]
    options: dict[str, Any] = {"split": found["split"] or split, "limit": min(limits, default=None)}
    if found["shuffle"]:
        if "shuffle" not in inspect.signature(make).parameters:
            raise UserError(f"the examples of {name} are drawn at random already; write {name}@{found['limit']}")
        options["shuffle"] = True
    if source:
        options["source"] = source
    try:
        inspect.signature(make).bind(**options)
    except (TypeError, ValueError):  # the latter of functions whose arguments Python does not know
        *first, last = sorted(options, key=["split", "limit", "shuffle", "source"].index)
        raise UserError(
            f"--tasks {name} does not take {', '.join(first)} and {last}; see docs/new-skill.md for a task's class"
        ) from None
    task = make(**options)
    if not isinstance(task, Task):
        raise UserError(f"--tasks {name} is no task; give a subclass of nanochat_hf.tasks.base.Task")
    return task, int(found["repeat"] or 1)


def parts_of(spec: str) -> dict[str, str | None]:
    """Returns the parts of a task's string: `name`, `split`, `source`, `shuffle`, `limit` and `repeat`.

    A source that exists on disk is taken as it is, with an `@2024` or `*2` at its end.

    Raises:
        UserError: the string is not of that form.
    """
    match = SPEC.fullmatch(spec.strip())
    if match is None or match["name"] not in TASKS:
        _refuse_path(spec.strip())
    if match is None:
        raise UserError(f"cannot read the task '{spec}'; the form is name[/split][=source][@[~]limit][*repeat]")
    found = match.groupdict()
    if found["source"]:
        whole = spec.strip().partition("=")[2]
        without_repeat = whole.removesuffix(f"*{found['repeat']}")
        if os.path.exists(os.path.expanduser(whole)):
            found |= {"source": whole, "shuffle": None, "limit": None, "repeat": None}
        elif os.path.exists(os.path.expanduser(without_repeat)):
            found |= {"source": without_repeat, "shuffle": None, "limit": None}
    if any(int(found[part] or 1) == 0 for part in ("limit", "repeat")):
        raise UserError(f"the task '{spec}' uses no example: give numbers above 0, or leave the task out")
    if int(found["repeat"] or 1) > MAX_REPEAT:
        raise UserError(f"the task '{spec}' repeats its examples more than {MAX_REPEAT:,} times; repeat them less")
    return found


def _check_name(found: dict[str, str | None]) -> None:
    if found["name"] not in TASKS and ":" not in str(found["name"]):
        raise UserError(
            f"there is no task '{found['name']}'; known are {', '.join(TASKS)}, and module:Class for one of your own"
        )


def _refuse_path(spec: str) -> None:
    """Raises `UserError` where a task's string is only the path of a file or a folder, or has the form of one."""
    path = re.sub(r"(@~?\d+)?(\*\d+)?$", "", spec)
    write = f"write conversations={spec}, or preferences={spec} for the pairs of DPO"
    if path and all(os.path.exists(os.path.expanduser(part)) for part in split_at_commas(path)):
        raise UserError(f"the task '{spec}' is a path without the name of the task that reads it; {write}")
    if "=" not in path and (path.startswith(("/", "./", "../", "~")) or file_format(path)):
        raise UserError(f"the task '{spec}' is a path, and there is no such file or folder; check it, and {write}")


def check_specs(specs: Iterable[str]) -> None:
    """Checks the strings of tasks without reading any data.

    Raises:
        UserError: as `load`, apart from the source.
    """
    for spec in separate(specs):
        _check_name(parts_of(spec))


def check_sources(specs: Iterable[str]) -> None:
    """Checks that the files and folders of tasks exist, without reading them. Ids of the Hub are not looked up.

    Raises:
        UserError: a source is neither there nor of the form of a Hub id; the message names it.
    """
    for spec, source, is_text in _sources(specs):
        if is_text:
            check_text(source)
            continue
        path = os.path.expanduser(source)
        if not os.path.exists(path) and not looks_like_hub_id(source):
            if not os.path.exists(path.rpartition(":")[0] or path):  # FOLDER:config
                raise UserError(f"the task '{spec}' needs {source}, and there is no such file or folder")


def fingerprints_of(specs: Iterable[str]) -> list[Fingerprint]:
    """The fingerprints of the files and folders that tasks name, each once; see `nanochat_hf.data.fingerprints`.

    Raises:
        UserError: a task's string has another form.
    """
    found = dict.fromkeys((source, is_text) for _, source, is_text in _sources(specs))
    return [one for source, is_text in found for one in (of_text(source) if is_text else [of_files(source)])]


def _sources(specs: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """Yields the sources that tasks name: (task's string; file, folder or Hub id; whether it is one of plain text)."""
    for spec in separate(specs):
        found = parts_of(spec)
        is_text = found["name"] == Documents.name
        sources = [found["source"] or ""] if is_text else split_at_commas(found["source"] or "")
        yield from ((spec, source, is_text) for source in sources if source)


def separate(specs: Iterable[str]) -> list[str]:
    """Returns the single task strings of a list in which some are joined by commas: `gsm8k,mmlu@100`."""
    names = "|".join(map(re.escape, TASKS))
    parts = [part.strip() for spec in specs for part in re.split(rf",\s*(?=(?:{names})(?:[/=@*,]|\s*$))", spec)]
    return [part for part in parts if part]


def check_scorers(tasks: Iterable[Task]) -> None:
    """Refuses tasks whose answers cannot be scored.

    Raises:
        UserError: a task has no scorer; the message names it and the remedy.
    """
    for task in tasks:
        if not task.has_score:
            scored = ", ".join(name for name in ("gsm8k", "spelling-bee", "microworld-problems") if name in TASKS)
            raise UserError(
                f"{task.name} has no right answers to score; train on it with SFT, and take a task with a scorer "
                f"here, such as {scored}"
            )


def check_code_execution(tasks: Iterable[Task], allowed: bool) -> None:
    """Refuses tasks that run code written by the model, unless that is allowed.

    Args:
        tasks: the tasks to check.
        allowed: the value of `--allow_code_execution`.

    Raises:
        UserError: a task runs code and `allowed` is False; the message names the task and the option.
    """
    for task in tasks:
        if task.runs_code and not allowed:
            raise UserError(
                f"{task.name} runs programs that the model wrote; add --allow_code_execution to run them in the "
                "sandbox, or leave the task out"
            )


def leave_out_unrunnable(tasks: Iterable[Task], where: str) -> list[Task]:
    """Leaves out the tasks that run code, where this machine cannot isolate a program; says so on stderr.

    Args:
        tasks: tasks that `check_code_execution` has allowed.
        where: the stage that goes on without them, for the message.

    Raises:
        UserError: no task is left.
    """
    tasks = list(tasks)
    names = ", ".join(task.name for task in tasks if task.runs_code)
    why = sandbox.why_unavailable() if names else None
    if why is None:
        return tasks
    kept = [task for task in tasks if not task.runs_code]
    if not kept:
        raise UserError(f"{names} cannot be scored: {why}")
    print(f"{where} goes on without {names}: {why}", file=sys.stderr, flush=True)
    return kept
