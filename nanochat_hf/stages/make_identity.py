"""Makes conversations about who the model is, from a file of facts that you edit.

    nanochat-hf make_identity --example > facts.yml              # then write your own facts into it
    nanochat-hf make_identity --facts facts.yml --output identity.jsonl
    nanochat-hf make_identity --facts facts.yml --output identity.jsonl --url http://localhost:8000/v1 --model NAME
    nanochat-hf sft --model runs/mine/base --output_dir runs/mine/sft --tasks conversations=identity.jsonl*2

Without --url they come from templates: the same seed gives the same file. With --url a model behind any
OpenAI-compatible server writes them; its key is read from NANOCHAT_API_KEY or HF_TOKEN. No conversation is written
twice. Each line is written as soon as it is known, and --append goes on with a file.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from threading import Thread
from typing import Any

from nanochat_hf import settings
from nanochat_hf.progress import progress_bar
from nanochat_hf.settings import MAX_SEED, StageHelp, UserError, folder_lock, setting

PER_REQUEST = 5  # conversations that one request asks for
MAX_DRAWS = 5_000  # templates: repetitions in a row, after which there is nothing new
MAX_FAULTS = 10  # server: replies in a row that hold nothing usable


@dataclass
class IdentityConfig:
    """The settings of this command."""

    facts: str = setting("", "file with the facts, as --example prints one", path=True)
    output: str = setting("", "file that receives the conversations, JSON lines", path=True)
    number: int = setting(1000, "conversations in the file", at_least=1, at_most=1_000_000)
    append: bool = setting(False, "go on with a file that exists")
    example: bool = setting(False, "print a file of facts to start from")
    seed: int = setting(42, "seed of the templates, and of the requests", at_least=0, at_most=MAX_SEED)
    url: str | None = setting(None, "OpenAI-compatible server that writes them; default: templates do")
    model: str | None = setting(None, "with --url: name of the model there")
    temperature: float = setting(1.0, "with --url: sampling temperature; 0: greedy", at_least=0, at_most=2)
    workers: int = setting(4, "with --url: requests at the same time", at_least=1, at_most=256)


HELP = StageHelp("make_identity", __doc__, "facts output number append example seed url model temperature workers")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("make_identity", IdentityConfig, argv, HELP)

    from nanochat_hf.tasks import identity

    if config.example:
        print(identity.EXAMPLE, end="")
        return
    if not config.facts or not config.output:
        raise UserError("give --facts, the file that says who the model is, and --output, the file to write")
    facts = identity.read_facts(config.facts)
    seen = check_output(config)
    # What a file has already was drawn with the first seeds: with others, few are drawn that come again.
    made = (
        from_server(config, facts, len(seen))
        if config.url
        else identity.from_templates(facts, config.seed + len(seen))
    )
    try:
        written = write(config, made, seen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"add --append to go on with {config.output}") from None
    wanted = "" if len(seen) >= config.number else f" ({config.number:,} were asked for; there are no more)"
    print(f"{written:,} conversations written to {config.output}, which has {len(seen):,}{wanted}")
    print(f"train on them with --tasks {shlex.quote(f'conversations={config.output}*2')}, beside other tasks")


def check_output(config: IdentityConfig) -> set[str]:
    """Returns what a file that is gone on with holds already, as `identity.key_of` says it.

    Raises:
        UserError: the file exists and `append` is false, is no file of conversations, or cannot be written.
    """
    from nanochat_hf.tasks import identity
    from nanochat_hf.tasks.reading import read_file

    path = Path(config.output)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file; give another --output")
    seen: set[str] = set()
    if path.exists() and path.stat().st_size:
        if not config.append:
            raise UserError(f"{path} exists; add --append to go on with it, or give another --output")
        for row in read_file(path):
            messages = row.get("messages") if isinstance(row, dict) else None
            if not isinstance(messages, list) or not all(
                isinstance(one, dict) and "content" in one for one in messages
            ):
                raise UserError(f"{path} holds something else than this command writes; give another --output")
            seen.add(identity.key_of(messages))
    settings.check_output_dir(path.absolute().parent, unfinished=False, option="--output")
    return seen


def write(config: IdentityConfig, made: Iterator[list[dict[str, Any]]], seen: set[str]) -> int:
    """Writes conversations that are not in `seen`, and adds them to it; returns how many it has written.

    Raises:
        UserError: another command is writing to the file.
    """
    from nanochat_hf.tasks import identity

    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = repeated = 0
    with (
        open(path, "a", encoding="utf-8") as file,
        progress_bar(total=config.number, initial=len(seen), desc="identity", unit=" conversations") as bar,
    ):
        folder_lock.lock(file, path, "--output")
        if file.tell():
            with open(path, "rb") as before:
                before.seek(-1, os.SEEK_END)
                if before.read() != b"\n":  # of an editor that does not end the last line
                    file.write("\n")
        while len(seen) < config.number and repeated < MAX_DRAWS:
            messages = next(made, None)
            if messages is None:
                break
            key = identity.key_of(messages)
            if key in seen:
                repeated += 1
                continue
            seen.add(key)
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            file.flush()
            written, repeated = written + 1, 0
            bar.update(1)
    return written


def from_server(config: IdentityConfig, facts: Any, first: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Yields what a model behind a server writes; ends where it gives nothing usable any more.

    Args:
        first: number of the first request. Requests of the same number are the same, seed included.

    Raises:
        UserError: the server does not answer, refuses, or answers with something else than conversations.
    """
    from nanochat_hf.chat import RemoteModel
    from nanochat_hf.chat.models import Answer
    from nanochat_hf.tasks import identity

    model = RemoteModel(str(config.url), config.model, key=os.environ.get("NANOCHAT_API_KEY"))

    def ask(number: int) -> tuple[list[list[dict[str, Any]]], int]:
        messages = identity.request(facts, config.seed, number, PER_REQUEST)
        sampling = {"max_new_tokens": 4096, "temperature": config.temperature, "seed": config.seed + number}
        text = ""
        for piece in model.answer(messages, **sampling):
            text = piece.content if isinstance(piece, Answer) else text
        return identity.read_reply(text if isinstance(text, str) else "")

    faults = refused = 0
    numbers = count(first)
    waiting = [in_background(ask, number) for number in islice(numbers, config.workers)]
    try:
        while faults < MAX_FAULTS:
            good, bad = waiting.pop(0).result()  # in order, so that a seeded server gives the same file
            waiting.append(in_background(ask, next(numbers)))
            refused += bad
            faults = 0 if good else faults + 1
            yield from good
    finally:
        with suppress(ValueError):
            print(f"{refused:,} replies or parts of them were no conversations", file=sys.stderr)
    raise UserError(
        f"{MAX_FAULTS} replies of {config.url} in a row held no conversations; try a larger model, or leave --url out"
    )


def in_background(function: Callable[..., Any], *arguments: Any) -> Future:
    """Calls a function in a thread that does not keep the program from ending, as those of an executor would."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


if __name__ == "__main__":
    settings.run_main(main)
