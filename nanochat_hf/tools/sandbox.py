"""A sandbox for untrusted Python programs, such as the code that a language model writes for a HumanEval problem.

Each program gets a new interpreter (`-I -S`: standard library only) with an empty environment in an empty folder. The
Linux kernel isolates it, not Python: Landlock for files and seccomp for system calls, and namespaces if they are
granted. `_sandbox_process.py` says what is allowed. It needs neither root nor a helper program and works inside
unprivileged containers. Escapes that defeat guards written in Python (subclass walks, references in frames, ctypes,
/proc/self/mem) do not help, because the program may use the whole interpreter anyway.

What the sandbox does not protect:

* against bugs in the kernel itself;
* the contents of files below the Python and system library folders, and the names and sizes of other files;
* the truth of `ok`: a program that wants to forge its success shares an interpreter with the code that reports it.

If the kernel cannot isolate the program (macOS, Windows, Linux before 5.13), `run_program` refuses to run it.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nanochat_hf.settings import UserError

MAX_OUTPUT = 64 * 1024  # bytes, of stdout and of stderr


class SandboxUnavailable(UserError):
    """The kernel cannot isolate the program; nothing was run."""


@dataclass(frozen=True)
class RunResult:
    """The result of a program.

    Attributes:
        ok: whether it ran to its last line within all limits.
        stdout, stderr: what it printed, at most 64 KiB each; undecodable bytes are replaced.
        reason: empty if `ok`, else one line: `timeout`, `memory`, `output limit`, `killed by SIGSEGV`, or the
            exception, such as `AssertionError: wrong`.
        isolation: the mechanisms that isolated it: `namespaces`, `tmpfs`, `landlock`, `seccomp`. Empty if none did.
    """

    ok: bool
    stdout: str
    stderr: str
    reason: str
    isolation: tuple[str, ...] = ()


def run_program(
    source: str, *, timeout: float = 5.0, memory_mb: int = 256, allow_unisolated: bool = False
) -> RunResult:
    """Runs `source` as a Python program in the sandbox.

    Args:
        source: the program, as text.
        timeout: seconds of wall-clock time, the start of the interpreter (about 50 ms) included.
        memory_mb: limit of the address space in MiB; the interpreter itself needs about 40.
        allow_unisolated: if the kernel cannot isolate the program, run it with resource limits only. For programs that
            you would also run by hand.

    Raises:
        SandboxUnavailable: the kernel cannot isolate the program, and `allow_unisolated` is false.
    """
    if not sys.platform.startswith("linux") and not allow_unisolated:
        raise _unavailable(f"{sys.platform} has neither Landlock nor seccomp")
    settings = {"timeout": timeout, "memory_mb": memory_mb, "allow_unisolated": allow_unisolated}
    with tempfile.TemporaryDirectory(prefix="nanochat-sandbox-", ignore_cleanup_errors=True) as folder:
        folder = os.path.realpath(folder)
        program = Path(folder, "program.py")
        program.write_bytes(source.encode("utf-8", "replace"))
        read_end, write_end = os.pipe()
        try:
            process = _start(program, write_end, settings)
            os.close(write_end)
            write_end = -1
            collected, failure = _collect(process, read_end, time.monotonic() + timeout)
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
    return _result(process, collected, failure)


@lru_cache(maxsize=1)
def why_unavailable() -> str | None:
    """Says in one sentence why no program can be isolated here; None where it can. Asked once per process."""
    try:
        run_program("", timeout=30.0)
    except SandboxUnavailable as error:
        return str(error)
    return None


def _start(program: Path, status: int, settings: dict) -> subprocess.Popen:
    script = Path(__file__).with_name("_sandbox_process.py")
    environment = {"LANG": "C.UTF-8", "HOME": str(program.parent), "TMPDIR": str(program.parent)}
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters do not start without it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(script), str(program), str(status), json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=program.parent,
        pass_fds=(status,),
        start_new_session=True,
    )


def _collect(process: subprocess.Popen, status: int, deadline: float) -> tuple[dict[str, bytes], str]:
    """Reads the three pipes until all are closed, a limit is reached or time is up. Then kills the process group."""
    collected = {"stdout": b"", "stderr": b"", "status": b""}
    failure = ""
    with selectors.DefaultSelector() as selector:
        for name, file in (("stdout", process.stdout), ("stderr", process.stderr), ("status", status)):
            selector.register(file, selectors.EVENT_READ, name)
        while selector.get_map() and not failure:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                failure = "timeout"
                break
            for key, _ in selector.select(remaining):
                chunk = os.read(key.fd, 16 * 1024)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                collected[key.data] += chunk
                if len(collected[key.data]) > MAX_OUTPUT:
                    failure = "output limit"
    if not failure:  # all pipes are closed, but a program may close them and go on
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            failure = "timeout"
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    process.stdout.close()
    process.stderr.close()
    return collected, failure


def _result(process: subprocess.Popen, collected: dict[str, bytes], failure: str) -> RunResult:
    lines = collected["status"].splitlines() or [b"{}"]
    first = json.loads(lines[0])  # written before the program began; the program itself may have written the others
    if "isolation" not in first:
        raise _unavailable(first.get("refused", f"the interpreter did not start: {collected['stderr'][-500:]!r}"))
    last = _read_report(lines[-1])
    stdout, stderr = (collected[name][:MAX_OUTPUT].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    reason = failure or str(last.get("failed", ""))[:500]
    if not reason and process.returncode < 0:
        reason = f"killed by {signal.Signals(-process.returncode).name}"
        if process.returncode == -signal.SIGXCPU:
            reason = "timeout"
    if not reason and not (last.get("finished") and process.returncode == 0):
        reason = f"the program left before its end (exit status {process.returncode})"
    if reason.startswith("MemoryError"):
        reason = "memory"
    return RunResult(not reason, stdout, stderr, reason, tuple(first["isolation"]))


def _read_report(line: bytes) -> dict:
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        report = None
    return report if isinstance(report, dict) else {"failed": "the program tampered with its report"}


def _unavailable(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"the code sandbox cannot isolate programs here ({why}); run this on Linux 5.13 or later, "
        "or pass allow_unisolated=True if you trust the code"
    )
