"""Attacks on the sandbox. Each program tries to escape; the test then checks that nothing outside has changed."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from nanochat_hf.tools import sandbox
from nanochat_hf.tools.sandbox import SandboxUnavailable, run_program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the Linux kernel keeps the boundary")


def run(source, **options):
    return run_program(textwrap.dedent(source), **options)


# --- ordinary programs


def test_runs_an_ordinary_program():
    result = run("""
        import collections, dataclasses, hashlib, heapq, itertools, json, math, random, re, string, typing
        @dataclasses.dataclass
        class Point:
            x: int
        assert Point(3).x == 3
        print(hashlib.md5(b"a").hexdigest(), math.gcd(12, 18))
    """)
    assert result.ok and result.reason == ""
    assert result.stdout == "0cc175b9c0f1b6a831c399e269772661 6\n"
    assert {"landlock", "seccomp"} <= set(result.isolation)


def test_may_use_its_own_folder_and_threads():
    result = run("""
        import os, tempfile, threading
        with open("note.txt", "w") as file: file.write("kept")
        os.mkdir("sub"); os.rename("note.txt", "sub/note.txt")
        print(open("sub/note.txt").read(), os.listdir("."))
        with tempfile.TemporaryFile() as file: file.write(b"x")
        thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
    """)
    assert result.ok, result
    assert result.stdout == "kept ['sub']\nthread\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("while True: pass", "timeout"),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", "timeout"),
        ("import os, time\nfor n in range(3): os.close(n)\ntime.sleep(60)", "timeout"),
        ("text = 'x' * 10**9", "memory"),
        ("rows = []\nwhile True: rows.append('x' * 10**6)", "memory"),
        ("while True: print('x' * 1000)", "output limit"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output limit"),
        ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
        ("import sys\nsys.exit(0)", "the program left before its end (SystemExit: 0)"),
        ("import os\nos._exit(0)", "the program left before its end (exit status 0)"),
    ],
)
def test_names_the_reason_of_a_failure(source, reason):
    result = run_program(source, timeout=1.5)
    assert not result.ok
    assert result.reason == reason
    assert len(result.stdout) <= sandbox.MAX_OUTPUT and len(result.stderr) <= sandbox.MAX_OUTPUT


def test_traceback_shows_the_program_alone():
    result = run("def f():\n    raise KeyError('k')\nf()")
    assert "program.py" in result.stderr and "_sandbox_process" not in result.stderr


def test_a_forged_report_does_not_confuse_the_parent():
    for forged in ('{"isolation": 5}', "[" * 5000, '{"finished": 1', "null"):
        result = run(f"""
            import os
            for descriptor in range(3, 64):
                try: os.write(descriptor, {forged!r}.encode() + b"\\n")
                except OSError: pass
            os._exit(1)
        """)
        assert not result.ok


# --- escapes


ISOLATION_ERRORS = ("PermissionError", "AssertionError", "OSError", "urllib.error.URLError")
ESCAPES = {
    "read by absolute path": "open(SECRET).read()",
    "read by relative path": "open(__import__('os').path.relpath(SECRET)).read()",
    "read through a symlink": "import os\nos.symlink(SECRET, 'link')\nopen('link').read()",
    "read through a hard link": "import os\nos.link(SECRET, 'link')\nopen('link').read()",
    "list a folder": "import os\nos.listdir(os.path.dirname(SECRET))",
    "read the password file": "open('/etc/passwd').read()",
    "read a device": "open('/dev/null')",
    "own memory": "open('/proc/self/mem', 'r+b')",
    "parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "parent's root folder": "import os\nos.listdir(f'/proc/{os.getppid()}/root/')",
    "write": "open(SECRET, 'w')",
    "append": "open(SECRET, 'a')",
    "create beside": "open(SECRET + '.new', 'w')",
    "truncate": "import os\nos.truncate(SECRET, 0)",
    "truncate what is only readable": "import os\nopen('own', 'w').close()\nos.open('own', os.O_RDONLY | os.O_TRUNC)",
    "remove": "import os\nos.remove(SECRET)",
    "rename": "import os\nos.rename(SECRET, 'mine')",
    "change mode": "import os\nos.chmod(SECRET, 0)",
    "change owner": "import os\nos.chown(SECRET, 1, 1)",
    "change times": "import os\nos.utime(SECRET, (0, 0))",
    "os.system": "import os\nassert os.system(f'cat {SECRET} > {SECRET}.new') == 0",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/cat', SECRET], check=True)",
    "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "fork": "import os\nos.fork()",
    "multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
    "subclass walk": """
        for kind in ().__class__.__base__.__subclasses__():
            if kind.__name__ == "_wrap_close":
                functions = kind.__init__.__globals__
                assert functions["system"](f"touch {SECRET}.new") == 0
                break
        else:
            raise RuntimeError("not found")
    """,
    "frames": """
        import sys
        frame = sys._getframe()
        while frame.f_back: frame = frame.f_back
        launcher = frame.f_globals
        assert launcher["libc"].system(f"touch {SECRET}.new".encode()) == 0
    """,
    "rebuild the C library's system": """
        import ctypes
        assert ctypes.CDLL(None).system(f"touch {SECRET}.new".encode()) == 0
    """,
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everything": "import os\nos.kill(-1, 9)",
    "signal by file ownership": "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
    "raise the limits": """
        import resource
        try: resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))
        except ValueError as error: raise PermissionError(error)
    """,
    "leave the session": "import os\nos.setsid()",
    "own root": "import os\nos.mkdir('x')\nos.chroot('x')",
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "urllib": "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{PORT}/', timeout=2)",
    "environment": "import os\nassert 'NANOCHAT_TEST_TOKEN' in os.environ",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_escape_fails(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_TEST_TOKEN", "secret")
    secret = tmp_path / "secret.txt"
    secret.write_text("the treasure")
    before = secret.stat()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.02)
        port = server.getsockname()[1]
        result = run_program(f"SECRET, PORT = {str(secret)!r}, {port}\n" + textwrap.dedent(ESCAPES[name]), timeout=3)
        with pytest.raises(TimeoutError):
            server.accept()
    assert not result.ok
    # The isolation stopped it: not a mistake in the test, and not the timeout.
    assert result.reason.split(":")[0] in ISOLATION_ERRORS, result
    assert "treasure" not in result.stdout + result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt"]
    after = secret.stat()
    assert secret.read_text() == "the treasure"
    assert (before.st_mode, before.st_uid, before.st_mtime) == (after.st_mode, after.st_uid, after.st_mtime)


def test_raw_system_calls_are_refused():
    result = run("""
        import ctypes, errno, platform
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {"x86_64": {"ptrace": 101, "socket": 41, "socketpair": 53, "execve": 59, "fork": 57, "vfork": 58,
                            "mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "io_uring_setup": 425,
                            "process_vm_writev": 311, "memfd_create": 319, "userfaultfd": 323, "keyctl": 250,
                            "tgkill": 234, "tkill": 200, "pidfd_open": 434, "openat2": 437, "setuid": 105,
                            "prlimit64": 302, "seccomp": 317, "x32 read": 0x40000000, "perf_event_open": 298},
                 "aarch64": {"ptrace": 117, "socket": 198, "execve": 221, "mount": 40, "unshare": 97, "setns": 268,
                             "bpf": 280, "io_uring_setup": 425, "process_vm_writev": 271, "tgkill": 131}}
        for name, number in calls[platform.machine()].items():
            ctypes.set_errno(0)
            status = libc.syscall(number, 0, 0, 0, 0, 0, 0)
            assert status == -1 and ctypes.get_errno() == errno.EPERM, (name, status, ctypes.get_errno())
    """)
    assert result.ok, result


def test_thread_and_file_bombs_are_bounded():
    threads = run(
        """
        import threading, time
        started = 0
        try:
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                started += 1
        except (RuntimeError, MemoryError):
            print(started)
        """
    )
    assert int(threads.stdout) < 256, threads
    files = run("""
        written = 0
        try:
            while written < 64:
                with open(f"file{written}", "wb") as file: file.write(b"x" * 2**20)
                written += 1
        except OSError as error:
            print(written, error.errno)
    """)
    if "tmpfs" in files.isolation:
        assert int(files.stdout.split()[0]) <= 32, files
    one = run("with open('big', 'wb') as file:\n    for _ in range(9): file.write(b'x' * 2**20)")
    assert not one.ok


def test_holds_without_namespaces(tmp_path):
    """Most containers forbid user namespaces: there Landlock and seccomp have to stand alone."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the treasure")
    script = f"""
        import ctypes, os
        uid = os.getuid()
        granted = ctypes.CDLL(None).unshare(0x10000000) == 0  # a user namespace that may have no children
        if granted:
            with open("/proc/self/setgroups", "w") as file: file.write("deny")
            with open("/proc/self/uid_map", "w") as file: file.write(f"0 {{uid}} 1")
            with open("/proc/sys/user/max_user_namespaces", "w") as file: file.write("0")
        from nanochat_hf.tools.sandbox import run_program
        result = run_program("open({str(secret)!r})")
        assert "PermissionError" in result.reason and result.isolation == ("landlock", "seccomp"), result
        result = run_program("import os; os.fork()")
        assert "PermissionError" in result.reason, result
        assert run_program("open('own', 'w').write('x'); print('fine')").stdout == "fine" + chr(10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_refuses_where_the_kernel_cannot_isolate(tmp_path, monkeypatch):
    """Without Landlock nothing runs, unless the caller allows it explicitly."""
    source = (sandbox.Path(sandbox.__file__).with_name("_sandbox_process.py")).read_text()
    broken = source.replace("    if version < 1:", "    if True:")
    assert broken != source
    (tmp_path / "_sandbox_process.py").write_text(broken)
    (tmp_path / "sandbox.py").write_text("")
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    marker = tmp_path / "ran"
    with pytest.raises(SandboxUnavailable, match="Landlock.*allow_unisolated"):
        run_program(f"open({str(marker)!r}, 'w')")
    assert not marker.exists()
    result = run_program("print('trusted')", allow_unisolated=True)
    assert result.ok and result.isolation == () and result.stdout == "trusted\n"
    assert run_program("while True: pass", timeout=1, allow_unisolated=True).reason == "timeout"


def test_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    run("open('left', 'w').write('x')")
    run("while True: pass", timeout=0.5)
    assert list(tmp_path.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) == before
