"""Compile the embedded model, load it back, and fill the same gaps before and after.

make demo          or          python examples/demo.py --out out/demo
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

# As the command does: threads that wait for each other sleep. It is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import qdc
from qdc.cli.compile import print_summary
from qdc.cli.terminal import console, print_lines, progress
from qdc.evaluation.infill import infill, parse_gaps
from qdc.text.tokenizer import encoder, load_tokenizer

MODEL = Path(__file__).parent / "tiny-llada"
SENTENCE = 'if not isinstance(value, str):\n    raise <mask><mask><mask>("expected a string")\n'


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    options = parser.parse_args()

    # An artifact that is there, and what an interrupted demo has left, is begun anew.
    with progress() as update:
        report = qdc.compile(
            MODEL, "default", out=options.out, progress=update, force=True, restart=True
        )
    to = console()
    print_summary(to, report)

    tokenizer = load_tokenizer(MODEL)
    mask = int(json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["mask_token_id"])
    tokens, gaps = parse_gaps(SENTENCE, encoder(tokenizer), mask)
    to.print("\ninfill of the gaps", style="bold")
    to.print(f"{'gaps':<10}{SENTENCE!r}", markup=False)
    for label, model in (("before", qdc.load_original(MODEL)), ("after", qdc.load(options.out))):
        filled = infill(model, tokens, gaps, mask)
        to.print(f"{label:<10}{tokenizer.decode(filled[0].tolist())!r}", markup=False)
    print_next(to, options.out)


def print_next(to: Console, out: Path) -> None:
    """Print what to type now, on one line however narrow the terminal is."""
    print_lines(to, "", f"next: {next_line(out)}")


def next_line(out: Path) -> str:
    """What to type now; it runs as it is printed, whether or not the environment is active."""
    arguments = ["eval", out, "--against", MODEL, "--text", MODEL / "heldout.jsonl"]
    return shlex.join([*command(), *map(str, arguments)])


def command() -> list[str]:
    """How the shell finds the ``qdc`` of this environment: by its name, or by its place."""
    here = Path(sys.executable).absolute()
    script, found = here.with_name("qdc"), shutil.which("qdc")
    if found is not None and Path(found).absolute() == script:
        return ["qdc"]
    words = [script] if script.is_file() else [here, "-m", "qdc"]
    return [os.path.relpath(word) if word in (script, here) else str(word) for word in words]


if __name__ == "__main__":
    try:
        main()
    except qdc.QdcError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
