"""Run one command of the qdc that is on the import path, by the processor's clock alone.

    PYTHONPATH=CHECKOUT python bench/speed/worker.py PROFILE TIMES COMMAND ...

Only the standard library is imported beside it, so that any checkout can be measured. What the
command says of seconds is processor time then. ``PROFILE`` is where ``cProfile`` writes, ``-`` for
no profile. It is run ``TIMES`` times in this process: the first one imports, and compiles kernels.
Written is a JSON list of what each took in processor seconds, and what it said.
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
    profile, times, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if profile == "-":
        return _run(command, times)
    profiler = cProfile.Profile(time.process_time)
    try:
        return profiler.runcall(_run, command, times)
    finally:
        profiler.dump_stats(profile)


def _run(command: list[str], times: int) -> int:
    found = []
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
