"""Mistakes that the user can correct: how they are raised, and how a command ends with one."""

import errno
import importlib
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat_hf.openmp import bound_spinning

STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # exit status of a stage that was told to stop and can be continued
# Packages that a plain install does not have → the extra that brings them.
EXTRAS = dict.fromkeys(
    ("accelerate", "datasets", "fsspec", "matplotlib", "peft", "psutil", "pyarrow", "torchao", "trl"), "train"
) | {"evaluate": "eval", "gradio": "space", "onnx": "onnx", "onnxscript": "onnx", "tiktoken": "tiktoken"}


# What the user can mend about a disk, and about a path: permissions, a file where a folder belongs and the reverse.
DISK = {errno.EROFS, errno.ENOSPC, errno.EDQUOT}
MENDABLE = {
    *DISK,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


class UserError(Exception):
    """A mistake that the user can correct. The message is one sentence that names the thing and the remedy."""


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB (Linux counts kilobytes, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_main(main: Callable[[], Any]) -> None:
    """Runs a script's `main`. A `UserError` ends in one line and exit status 2, Ctrl-C in exit status 130.

    A package that an extra brings and that is not installed is a `UserError`, and so is too little memory. The
    package's own warnings are lines. Before torch is imported, it bounds how long OpenMP's threads spin (`openmp`).
    Where several processes run the script, an error in one of them ends all (`failures`).
    """
    bound_spinning()
    show_own_warnings()
    job = None
    if "WORLD_SIZE" in os.environ:  # a launcher started it; others start without what this imports
        from nanochat_hf.settings.failures import join_job

        job = join_job()
    try:
        main_with_user_errors(main)
    except UserError as error:
        if job:
            sentence, status, _ = job.fail(str(error), 2)
            job.end(sentence, status)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:  # its words say what else there is to do
        print(f"interrupted; {str(error) or 'run the same command again to continue'}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not job:
            raise
        trace, reason = traceback.format_exc(), (str(error).strip().splitlines() or [""])[0]
        sentence, status, first = job.fail(f"{type(error).__name__}: {reason}", 1)
        if first:  # later ones follow from it, such as a lost connection
            print(trace, file=sys.stderr)
        job.end(sentence, status)


def show_own_warnings() -> None:
    """Prints each warning of this package as one line, `warning: ...`, once. Others are shown as Python shows them."""
    package, show = f"{Path(__file__).parents[1]}{os.sep}", warnings.showwarning
    shown: set[str] = set()

    def show_as_line(message: Any, category: Any, filename: str, *rest: Any, **named: Any) -> None:
        if not filename.startswith(package):
            show(message, category, filename, *rest, **named)
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show_as_line


def main_with_user_errors(main: Callable[[], Any]) -> None:
    """Runs `main`; a missing package of an extra, too little memory and a path that fails become `UserError`."""
    try:
        main()
    except ModuleNotFoundError as error:
        check_extra(error.name)
        raise
    except Exception as error:
        if is_out_of_memory(error):
            reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            raise UserError(
                f"not enough memory ({reason}); make the batches, the rows or the model smaller, for example with "
                "--device_batch_size (evaluations: --max_tokens and --batch_size)"
            ) from None
        if isinstance(error, OSError) and error.errno in (MENDABLE if error.filename else DISK):
            path = f"{error.filename}: " if error.filename else ""
            raise UserError(
                f"{path}{error.strerror}; make room, change the permissions or give another path, and run the same "
                "command again"
            ) from None
        raise


def reason_of(error: Exception) -> str:
    """What an error says, in one line without a full stop; its kind too where its words alone may say little."""
    lines = str(error).strip().splitlines()
    first = " ".join(line.strip() for line in lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".")
    kind = type(error).__name__
    if not first:
        return kind
    return f"{kind}: {first}" if isinstance(error, LookupError | AttributeError | ArithmeticError) else first


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, NumPy or torch means that there is too little memory."""
    words = ("can't allocate memory", "not enough memory", "CUDA out of memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def load_module(name: str, option: str) -> Any:
    """Imports a module of the user's, installed or in the current folder.

    Args:
        option: the setting that names it, for the error.

    Raises:
        UserError: there is no such module, or it cannot be imported.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's own file raises
        raise UserError(
            f"{option}: cannot import the module {name} ({type(error).__name__}: {error}); name one that is installed "
            "or in the current folder"
        ) from None


def load_function(path: str, option: str) -> Callable[..., Any]:
    """Imports a function or a class by its path `module:name`.

    Raises:
        UserError: the path has another form, or there is no such function.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise UserError(f"{option} {path} is no import path; write module:name, such as my_rewards:score")
    function = getattr(load_module(module, option), name, None)
    if not callable(function):
        raise UserError(f"{option} {path}: the module {module} has no function or class {name}")
    return function


def check_extra(module: str | None) -> None:
    """Raises UserError with the command that installs `module`, where an extra brings it."""
    extra = EXTRAS.get((module or "").split(".")[0])
    if extra:
        raise UserError(f"this needs more packages ({module} is missing): pip install 'nanochat-hf[{extra}]'")
