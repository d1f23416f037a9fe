"""The process inside the sandbox. sandbox.py starts it; it is never imported.

    python -I -S _sandbox_process.py PROGRAM STATUS_FD SETTINGS

The process isolates itself before it runs the first line of the untrusted program. It cannot undo this:

* **Landlock** (Linux 5.13 or later): it can read the standard library and the shared-library folders, and read and
  write its working folder. It can open nothing else, /proc and /dev included.
* **seccomp-bpf**: it can make the system calls of an ordinary computation only. No sockets, no new processes or
  programs, no signals to others, no ptrace, no mounts, no io_uring. `clone` is allowed for threads only.
* **no_new_privs, no capabilities, resource limits** (memory, CPU time, file size, descriptors, core dumps).
* If the kernel allows it, also its own **namespaces** (user, network, mount, IPC), and a small tmpfs as the working
  folder, which limits the disk space. Unprivileged containers often forbid both, and the sandbox does not need them.

It uses the standard library only, and reads no file of this package after it has isolated itself.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x00020000, 0x08000000
CLONE_THREAD = 0x00010000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000

# The allowed system calls, with their numbers on x86-64 and on aarch64 (None: that machine has no such call).
SYSCALLS = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "close": (3, 57), "lseek": (8, 62), "dup": (32, 23), "dup3": (292, 24), "pipe2": (293, 59),
    "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlinkat": (267, 78), "mkdirat": (258, 34), "unlinkat": (263, 35), "renameat": (264, 38),
    "renameat2": (316, 276), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "setitimer": (38, 103), "getitimer": (36, 102),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "exit": (60, 93), "exit_group": (231, 94),
    "futex": (202, 98), "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "times": (100, 153),
    "getrusage": (98, 165), "sysinfo": (99, 179), "getrandom": (318, 278), "ppoll": (271, 73), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "stat": (4, None), "lstat": (6, None), "access": (21, None), "pipe": (22, None), "dup2": (33, None),
    "select": (23, None), "poll": (7, None), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "unlink": (87, None), "readlink": (89, None), "getdents": (78, None), "arch_prctl": (158, None),
    "time": (201, None), "epoll_create": (213, None), "epoll_wait": (232, None), "alarm": (37, None),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of SYSCALLS, AUDIT_ARCH constant
CLONE, CLONE3, FCNTL, IOCTL, OPENAT, OPEN_X86 = (56, 220), (435, 435), (72, 25), (16, 29), (257, 56), 2
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX


class Unavailable(Exception):
    """This kernel cannot isolate the process."""


libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    """Returns the result of a C call; raises Unavailable, with the name of the call, if it failed."""
    if result < 0:
        raise Unavailable(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit_resources(timeout, memory_mb):
    """Sets the resource limits: CPU time in seconds (a little above `timeout`) and address space in MiB."""
    seconds = int(timeout) + 2
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 8 * 2**20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 64,
        resource.RLIMIT_AS: memory_mb * 2**20,
    }
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def enter_namespaces(folder):
    """Enters new user, network, mount and IPC namespaces and mounts a tmpfs of 32 MiB on the working folder.

    Returns the names of what the kernel granted: "namespaces", "tmpfs".
    """
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC) < 0:
        return []
    granted = ["namespaces"]
    try:
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    except OSError:
        return granted
    options = ctypes.c_char_p(b"size=32m,nr_inodes=4096,mode=700")
    if (
        libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) == 0
        and libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(MS_NOSUID | MS_NODEV), options) == 0
    ):
        granted.append("tmpfs")
    return granted


def drop_capabilities():
    """Gives up all capabilities."""
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    check(libc.capset(header, bytes(24)), "capset")


def restrict_files(folder):
    """Landlock: allows reading below the library folders, reading and writing below `folder`, and nothing else."""
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise Unavailable("this kernel has no Landlock (Linux >= 5.13, enabled by the lsm= boot parameter)")
    execute, write_file, read_file, read_dir = 1, 2, 4, 8
    everything = (1 << (13 + min(version, 3) - 1)) - 1  # 13 rights in version 1; then refer, truncate
    if version >= 5:
        everything |= 1 << 15  # ioctl on devices
    network = 3 if version >= 4 else 0  # bind and connect over TCP
    scope = 3 if version >= 6 else 0  # abstract unix sockets and signals
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("QQQ", everything, network, scope)[:size]
    ruleset = check(libc.syscall(444, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset")
    libraries = {os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.path.realpath(os.__file__))}
    libraries |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"}
    writable = everything & ~execute & ~(1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12)  # no devices, sockets, links
    for path, rights in [*((library, read_file | read_dir) for library in libraries), (folder, writable)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            rights &= read_file | write_file
        rule = struct.pack("=Qi", rights, descriptor)
        check(libc.syscall(445, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(descriptor)
    check(libc.syscall(446, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def seccomp_program(machine):
    """Returns the seccomp filter as a BPF program: the listed calls are allowed, all others fail with EPERM."""
    if machine not in MACHINES or sys.byteorder != "little":
        raise Unavailable(f"no system call table for {machine}; the sandbox knows {' and '.join(MACHINES)}")
    column, architecture = MACHINES[machine]
    load, equal, bits, give, mask = 0x20, 0x15, 0x45, 0x06, 0x54
    allow, refuse, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM is 1, ENOSYS 38

    def argument(index):
        return (load, 0, 0, 16 + 8 * index)

    def case(number, body):
        return [(equal, 0, len(body), number), *body]

    def one_of(index, values):
        lines = [argument(index)]
        for value in values:
            lines += [(equal, 0, 1, value), (give, 0, 0, allow)]
        return [*lines, (give, 0, 0, refuse)]

    # O_RDONLY with O_TRUNC empties a file that may only be read. Landlock refuses it from its third version on.
    no_readonly_truncate = [(mask, 0, 0, os.O_TRUNC | os.O_ACCMODE), (equal, 0, 1, os.O_TRUNC)]
    no_readonly_truncate += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    for numbers in SYSCALLS.values():
        if numbers[column] is not None:
            lines += case(numbers[column], [(give, 0, 0, allow)])
    threads = [argument(0), (bits, 1, 0, CLONE_THREAD), (give, 0, 0, refuse), (give, 0, 0, allow)]
    lines += case(CLONE[column], threads)
    lines += case(
        CLONE3[column], [(give, 0, 0, missing)]
    )  # a filter cannot read its flags; the C library then uses clone
    lines += case(FCNTL[column], one_of(1, FCNTL_COMMANDS))
    lines += case(IOCTL[column], one_of(1, IOCTL_COMMANDS))
    lines += case(OPENAT[column], [argument(2), *no_readonly_truncate])
    if machine == "x86_64":
        lines += case(OPEN_X86, [argument(1), *no_readonly_truncate])
    lines.append((give, 0, 0, refuse))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def restrict_syscalls():
    """seccomp: installs the filter of system calls."""
    program = ctypes.create_string_buffer(seccomp_program(platform.machine()))
    header = struct.pack("HxxxxxxQ", (len(program) - 1) // 8, ctypes.addressof(program))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def isolate(folder, timeout, memory_mb):
    """Isolates this process; returns the names of the mechanisms. Raises Unavailable without Landlock or seccomp."""
    platform.machine()  # may read files, and caches the answer: ask before files are out of reach
    mechanisms = enter_namespaces(folder)
    os.chdir(folder)
    limit_resources(timeout, memory_mb)
    drop_capabilities()
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    restrict_files(folder)
    restrict_syscalls()
    return [*mechanisms, "landlock", "seccomp"]


def report(status, **facts):
    """Writes one line of JSON to the descriptor that sandbox.py reads."""
    os.write(status, json.dumps(facts).encode() + b"\n")


def describe(error):
    """Returns `error` as one line, and prints its traceback on stderr without the frames of this file."""
    try:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__.tb_next)
        return "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1][:500]
    except BaseException:  # whatever the program did to the interpreter, its failure must still be reported
        return type(error).__name__


def main():
    """Isolates the process, runs the program, and reports `isolation` or `refused`, then `finished` or `failed`."""
    path, status, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    with open(path, encoding="utf-8") as file:
        source = file.read()
    os.unlink(path)
    folder = os.path.dirname(path)
    try:
        report(status, isolation=isolate(folder, settings["timeout"], settings["memory_mb"]))
    except (Unavailable, OSError, ValueError, AttributeError) as error:
        if not settings["allow_unisolated"]:
            report(status, refused=str(error))
            return
        os.chdir(folder)
        limit_resources(settings["timeout"], settings["memory_mb"])
        report(status, isolation=[])
    sys.argv[:] = ["program.py"]
    program = sys.modules["__main__"] = types.ModuleType("__main__")
    failure = None
    try:
        exec(compile(source, "program.py", "exec"), program.__dict__)
    except SystemExit as error:
        failure = f"the program left before its end (SystemExit: {error.code})"
    except BaseException as error:
        failure = describe(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException as error:
            failure = failure or type(error).__name__
    report(status, **({"failed": failure} if failure else {"finished": True}))
    os._exit(0 if failure is None else 1)


if __name__ == "__main__":
    main()
