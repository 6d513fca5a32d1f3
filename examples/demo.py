"""Compile the embedded model, load it back, and fill the same gaps before and after.

make demo          or          python examples/demo.py --out out/demo
"""

import argparse
import json
from pathlib import Path

import qdc
from qdc.cli.compile import print_summary
from qdc.cli.terminal import console, progress
from qdc.evaluation.infill import infill, parse_gaps
from qdc.text.tokenizer import encoder, load_tokenizer

MODEL = Path(__file__).parent / "tiny-llada"
SENTENCE = 'if not isinstance(value, str):\n    raise <mask><mask><mask>("expected a string")\n'


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    options = parser.parse_args()

    with progress() as update:
        report = qdc.compile(MODEL, passes="default", out=options.out, force=True, progress=update)
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
    held_out = MODEL / "heldout.jsonl"
    to.print(f"\nnext: qdc eval {options.out} --against {MODEL} --text {held_out}", markup=False)


if __name__ == "__main__":
    main()
