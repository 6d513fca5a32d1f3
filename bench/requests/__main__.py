"""Send a server what no decent client sends: is each request answered, refused, or a failure?

    python -m bench.requests --requests 500
    python -m bench.requests --only 'hosts' --case 17

A random artifact is served, which gives NaN for prompts with one token, with keys and one request
at a time. Each request is written to a socket as it is, all of it before a byte is read, and is
decided by its kind, number and `--seed`. A request fails if its status is not among those of its
kind, if an error is not in OpenAI's form, or if no answer comes to a client that waits for one; a
5xx is of the model's NaN alone. Then one client floods the server by `--flood` requests, and
another one asks. At last a sound request must get the answer that it got at first, and SIGTERM must
end the server with 0 and without a traceback. Exits with 1 if anything was otherwise.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.common.markdown import table

from .kinds import HOT, KINDS, request, sound
from .sending import attack, exchange, flood
from .server import make, start


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, and print two tables."""
    given = _parser().parse_args(arguments)
    kinds = [kind for kind in KINDS if re.search(given.only, kind)]
    share = -(-given.requests // max(1, len(kinds)))
    numbers = range(share) if given.case is None else [given.case]
    failures: list[str] = []
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(prefix="requests-") as scratch:
        model = make(Path(scratch))
        process, port = start(model)
        probe = request(sound({"prompt": [5, 6, 7 + HOT]}))
        first = exchange(port, probe)
        statuses: Counter[int] = Counter()
        for kind in kinds:
            found = [attack(port, kind, number, given.seed) for number in numbers]
            failures += [
                f"{kind} {number}: {wrong}"
                for number, (_, _, wrong) in zip(numbers, found, strict=True)
                if wrong
            ]
            here = Counter(status for status, _, _ in found)
            statuses += here
            shown = ", ".join(
                f"{count} x {status or 'none'}" for status, count in sorted(here.items())
            )
            slowest = max(seconds for _, seconds, _ in found)
            rows.append(
                (kind, len(found), shown, sum(bool(w) for *_, w in found), f"{slowest:.2f}")
            )
        total = sum(statuses.values())
        high = sum(count for status, count in statuses.items() if status >= 500)
        rows.append(("all", total, f"{high} of 5xx", len(failures), ""))
        print(table(("kind", "requests", "statuses", "failed", "slowest s"), rows))
        if given.flood:
            whole, answered, between = flood(port, given.flood)
            head = ("flood", "seconds", "another's request", "of the flood answered meanwhile")
            print("\n" + table(head, [(given.flood, f"{whole:.2f}", f"{answered:.2f} s", between)]))
            if between > 2:
                failures.append(f"{between} requests of the flood went before another's")
        if _text(exchange(port, probe)) != _text(first):
            failures.append("the server answers otherwise than at first")
        os.kill(process.pid, signal.SIGTERM)
        errors = (model.parent / "errors").read_text(encoding="utf-8")
        if (status := process.wait(60)) or "Traceback" in errors:
            failures.append(f"the server ended with {status}: {errors[-2000:]}")
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def _text(answer: bytes) -> object:
    """The tokens and the text of a stream of steps, without its times."""
    return re.findall(rb'"tokens":\[.*?\]|"text":".*?"', answer)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.requests", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500, help="of all kinds together, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose names match this expression")
    parser.add_argument("--case", type=int, help="just the request of this number")
    parser.add_argument("--flood", type=int, default=64, help="requests of one client at once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
