"""Put our curve and everybody's points at 1.25 to 3.5 effective bits into one run.

    python -m bench.curve --model examples/tiny-llada --out bench/out/curve --list
    python -m bench.curve --model smollm2 --samples 32 --length 256 --out bench/out/smol --page

A model with a mask token is judged by the rise of the masked cross-entropy at ratio 0.5; one
without is calibrated on clean text and judged by next-token loss. calibration.jsonl and
heldout.jsonl of the model's folder are read where they are there. What is done is kept in --out,
by a digest of all that decides it: the call can be interrupted, repeated, or given a part to do.
"""

import argparse
import re
import sys
from pathlib import Path

from bench.common.processes import EMBEDDED, ROOT
from bench.common.running import print_jobs, run_pending, seeds
from qdc.comparing.runner import finished
from qdc.errors import QdcError

from .cases import cases
from .jobs import Settings, resolve, setup
from .page import write_page


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 if a job failed or what is asked cannot be done."""
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except QdcError as error:
        print(error, file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    settings = Settings(
        model=given.model,
        out=given.out,
        calibration=_text(given.calibration, given.model, "calibration"),
        held_out=given.held_out or given.model / "heldout.jsonl",
        peers_python=given.peers_python.absolute(),
        samples=given.samples,
        length=given.length,
        windows=given.windows,
        masks=given.masks,
        tag=given.tag,
    )
    shared = setup(settings)
    jobs = list(resolve(cases(shared.graph), given.seeds, shared, settings.peers_python))
    wanted = [job for job in jobs if re.search(given.only, job.path)]
    if given.list:
        print_jobs(wanted, given.out)
        return 0
    failed = {} if given.page_only else run_pending(wanted, given.out, given.jobs, given.threads)
    results = finished(given.out, jobs)
    if given.page or given.page_only:
        write_page(jobs, results, given.docs, settings, shared)
    return 1 if failed else 0


def _text(given: Path | None, model: Path, side: str) -> Path | None:
    """The text that is given, or the one in the model's folder, if there is one."""
    own = model / f"{side}.jsonl"
    return given or (own if own.is_file() else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=EMBEDDED, help="a checkpoint folder")
    add("--out", type=Path, required=True, help="results; what is there is kept")
    add("--list", action="store_true", help="print the jobs and whether they are done, run none")
    add("--page", action="store_true", help="write the model's part of docs/quality.md afterwards")
    add("--page-only", action="store_true", help="run nothing, write that part from what is there")
    add("--only", default="", metavar="REGEX", help="jobs to run, as '^library/llama.cpp'")
    add("--jobs", type=int, default=1, help="processes at a time")
    add("--threads", type=int, default=1, help="threads of each")
    add("--seeds", type=seeds, default=(0, 1, 2), metavar="LIST", help="calibration seeds")
    add("--samples", type=int, help="calibration samples [default: the passes' 128]")
    add("--length", type=int, help="tokens of a sample and of a window [default: the model's]")
    add("--windows", type=int, default=32, help="held-out windows")
    add("--masks", type=int, default=1, help="mask drawings of a window")
    add("--calibration", type=Path, help="text [default: the model's, else that of qdc]")
    add("--held-out", type=Path, help="text [default: the model's]")
    add("--tag", default="", help="marks the source of qdc; another tag computes everything anew")
    add("--docs", type=Path, default=ROOT / "docs", help="folder of quality.md")
    add("--peers-python", type=Path, default=Path(".venv-peers/bin/python"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
