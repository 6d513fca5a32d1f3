"""Run one command of the qdc that is on the import path, by the processor's clock alone.

    PYTHONPATH=CHECKOUT python bench/speed/worker.py PROFILE COMMAND ...

Only the standard library is imported beside it, so that any checkout can be measured. What the
command says of seconds is processor time then. ``PROFILE`` is where ``cProfile`` writes, ``-`` for
no profile.
"""

import cProfile
import sys
import time

time.perf_counter = time.process_time


def main() -> int:
    """Run the command; its exit status."""
    profile, command = sys.argv[1], sys.argv[2:]
    if profile == "-":
        return _run(command)
    profiler = cProfile.Profile(time.process_time)
    try:
        return profiler.runcall(_run, command)
    finally:
        profiler.dump_stats(profile)


def _run(command: list[str]) -> int:
    from qdc.cli import run

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
