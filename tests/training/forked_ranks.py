"""Starts the processes of jobs: this one imports what takes long, and forks the others. `ranks.py` asks it.

    python forked_ranks.py MODULE < JOBS

A job is a line of JSON: a list with one object per process: `command` (a script and its words), `env`, `cwd` (or
null), and the files `stdout` and `stderr`. No launcher ends the other processes when one has ended. Prints each job's
list of exit statuses as a line of JSON.
"""

import importlib
import json
import os
import runpy
import sys
import traceback


def run(command, env, cwd, stdout, stderr):
    """Becomes a process of a job; returns its exit status."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(env)
    if cwd:
        os.chdir(cwd)
    sys.argv = command
    sys.path.insert(0, os.path.dirname(command[0]))
    try:
        runpy.run_path(command[0], run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main():
    importlib.import_module(sys.argv[1])
    for job in sys.stdin:
        children = []
        for process in json.loads(job):
            child = os.fork()
            if not child:
                os._exit(run(**process))
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
