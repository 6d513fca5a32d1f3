"""Run the quality benchmark and write its page: see ``python -m bench.quality --help``."""

import argparse
import re
import sys
from pathlib import Path

from bench.common.processes import EMBEDDED, ROOT
from bench.common.running import print_jobs, run_pending, seeds
from qdc.comparing.runner import finished

from . import ablations, cases
from .jobs import Settings, resolve
from .page import write_page


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 if a job failed."""
    given = _parser().parse_args(arguments)
    settings = Settings(
        model=given.model,
        held_out=given.held_out or given.model / "heldout.jsonl",
        out=given.out,
        peers_python=given.peers_python.absolute(),
        windows=given.windows,
        samples=given.samples,
        tag=given.tag,
    )
    jobs = [
        *resolve(cases.methods(), given.seeds, settings),
        *resolve(ablations.cases(), given.ablation_seeds, settings),
        *resolve(cases.timings(), given.seeds, settings),
    ]
    wanted = [job for job in jobs if re.search(given.only, job.path)]
    if given.list:
        print_jobs(wanted, given.out)
        return 0
    failed = {} if given.page else run_pending(wanted, given.out, given.jobs, given.threads)
    if not given.no_page:
        write_page(jobs, finished(given.out, jobs), given.docs, settings)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality",
        description="Quality of every method on the embedded model. Jobs that are done are kept.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print the jobs and whether they are done, run none")
    add("--page", action="store_true", help="run nothing, write the page from what is there")
    add("--no-page", action="store_true", help="leave the page as it is")
    add("--only", default="", metavar="REGEX", help="jobs to run, as '^method/best/'")
    add("--jobs", type=int, default=1, help="processes at a time")
    add("--threads", type=int, default=1, help="threads of each (timings run alone, on 2)")
    add("--seeds", type=seeds, default=(0, 1, 2), help="calibration seeds of the methods")
    add("--ablation-seeds", type=seeds, default=(0,), help="the same for the ablations")
    add("--tag", default="", help="marks the source of qdc; another tag computes everything anew")
    add("--windows", type=int, default=64, help="held-out windows")
    add("--samples", type=int, help="calibration samples where a pipeline does not say: trial runs")
    add("--model", type=Path, default=EMBEDDED)
    add("--held-out", type=Path, help="text, the model's heldout.jsonl if not given")
    add("--out", type=Path, default=ROOT / "bench" / "out" / "quality", help="results")
    add("--docs", type=Path, default=ROOT / "docs", help="folder of quality.md")
    add("--peers-python", type=Path, default=Path(".venv-peers/bin/python"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
