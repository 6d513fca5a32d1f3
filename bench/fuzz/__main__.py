"""Damage files that qdc reads, at random, and see that each is read or refused.

    python -m bench.fuzz --cases 5000
    python -m bench.fuzz --only 'shard headers' --case 17

A model of width 16 is compiled, copied and damaged, once for each case; then everything in qdc that
reads such files reads the copy, in a process with a limit on memory and on time. A case passes if
each reader takes the files or refuses them with a message. Exits with 1 if a case fails.
"""

import argparse
import logging
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.common.forks import prepare_for_forks
from bench.common.markdown import table

from .kinds import KINDS, NATIVES
from .sources import write_sources
from .worker import FAILED, MEMORY, REFUSED, SECONDS, TAKEN, Case, Outcome, read_all, run_cases


def main() -> int:
    """Run the cases and print a table; 1 if one has failed."""
    given = _parser().parse_args()
    prepare_for_forks()
    logging.getLogger("qdc").setLevel(logging.ERROR)  # most have no digests
    kinds = {**KINDS, **(NATIVES if given.native else {})}
    wanted = [kind for kind in kinds if re.search(given.only, kind)]
    if given.case is not None:
        cases = [Case(kind, given.case) for kind in wanted]
    else:
        share = -(-given.cases // max(1, len(wanted)))
        cases = [Case(kind, number) for kind in wanted for number in range(share)]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        os.chdir(scratch)  # sockets have short names only
        sources = write_sources(
            Path(scratch) / "sources", {name for kind in wanted for name in kinds[kind].sources}
        )
        for name in wanted:  # which also loads what Python loads late
            found = read_all(sources[kinds[name].sources[0]], kinds[name].readers)
            if found[0] != TAKEN:
                sys.exit(f"the sound files of {name} are not taken: {found}")
        for outcome in run_cases(sources, cases, given.seed, Path(scratch)):
            outcomes.append(outcome)
            if outcome.verdict == FAILED:
                print(f"FAILED {outcome.case}: {outcome.detail}\n", file=sys.stderr, flush=True)
    _table(wanted, outcomes)
    return int(any(outcome.verdict == FAILED for outcome in outcomes))


def _table(kinds: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    head = ("kind", "cases", REFUSED, TAKEN, FAILED, "slowest s", "most MiB")
    rows = []
    groups = {kind: [o for o in outcomes if o.case.kind == kind] for kind in kinds}
    for name, group in {**groups, "all": list(outcomes)}.items():
        counts = [sum(o.verdict == verdict for o in group) for verdict in (REFUSED, TAKEN, FAILED)]
        slowest = max((o.seconds for o in group), default=0.0)
        most = max((o.memory for o in group), default=0) / 2**20
        rows.append((name, len(group), *counts, f"{slowest:.2f}", f"{most:.0f}"))
    print(table(head, rows))
    total = sum(o.seconds for o in outcomes)
    print(f"\nbounds: {SECONDS:.0f} s and {MEMORY >> 20} MiB a case; {total:.0f} s in all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="of all kinds together, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose names match this expression")
    parser.add_argument("--case", type=int, help="just the case of this number")
    parser.add_argument("--native", action="store_true", help="also classes of transformers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
