"""Commands that a command runs in the foreground: the stages of a pipeline, the runs of a sweep."""

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from nanochat_hf.settings.errors import STOPPED_BY_SIGTERM


def run_command(command: Sequence[str], title: str) -> int:
    """Runs a command until it ends, and returns its exit status.

    SIGTERM is passed on to it, so that a stage can save before it stops. Then this process ends, too.

    Args:
        command: its words.
        title: what to call it.

    Raises:
        SystemExit: with status 143, where the command or this process was stopped by SIGTERM.
    """
    started: list[subprocess.Popen] = []
    told_to_stop = False

    def pass_on(number: int, frame: Any) -> None:
        nonlocal told_to_stop
        told_to_stop = True
        for process in started:
            process.send_signal(number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may handle signals
    before = signal.signal(signal.SIGTERM, pass_on) if in_main_thread else None
    try:
        with subprocess.Popen(command) as process:
            started.append(process)
            if told_to_stop:  # before it was in the list
                process.terminate()
            try:
                status = process.wait()
            except BaseException:  # Ctrl-C, which the terminal sends to the command, too
                process.kill()
                raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    if told_to_stop or status in (STOPPED_BY_SIGTERM, -signal.SIGTERM):
        print(f"{title} was stopped by SIGTERM; run the same command again to continue", file=sys.stderr)
        sys.exit(STOPPED_BY_SIGTERM)
    return status
