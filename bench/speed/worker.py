"""Run commands of the qdc that is on the import path, by the processor's clock alone.

    PYTHONPATH=CHECKOUT python bench/speed/worker.py PROFILE TIMES COMMAND ... [-- COMMAND ...]

Only the standard library is imported beside it, so that any checkout can be measured. What the
command says of seconds is processor time then. ``PROFILE`` is where ``cProfile`` writes, ``-`` for
no profile. Each is run ``TIMES`` times in this process: the first one imports, and compiles
kernels. Written is a JSON list of what each command took the last time in processor seconds, and
what it said.
"""

import contextlib
import cProfile
import io
import json
import sys
import time

time.perf_counter = time.process_time


def main() -> int:
    """Run the command; its exit status."""
    profile, times = sys.argv[1], int(sys.argv[2])
    commands: list[list[str]] = [[]]
    for word in sys.argv[3:]:
        if word == "--":
            commands.append([])
        else:
            commands[-1].append(word)
    if profile == "-":
        return _run(commands, times)
    profiler = cProfile.Profile(time.process_time)
    try:
        return profiler.runcall(_run, commands, times)
    finally:
        profiler.dump_stats(profile)


def _run(commands: list[list[str]], times: int) -> int:
    found = []
    for command in commands:
        for _ in range(times):
            begin, said = time.process_time(), io.StringIO()
            with contextlib.redirect_stdout(said):
                status = _call(command)
            if status:
                return status
        found.append({"processor": time.process_time() - begin, "said": said.getvalue()})
    print(json.dumps(found))
    return 0


def _call(command: list[str]) -> int:
    from qdc.cli import run

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
