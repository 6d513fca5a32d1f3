"""Write the text that travels with qdc: for calibration, and held out for evaluation.

    python examples/embed_text.py

``qdc/data/calibration.jsonl`` takes training files alone, ``examples/tiny-llada/heldout.jsonl``
files that the embedded model never saw. Both hold one ``{"name", "text"}`` a line, whole files, an
even choice over the sorted names, so that a second run writes the same bytes.
"""

import json
from pathlib import Path

from tiny_corpus import split

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION, HELD_OUT = "qdc/data/calibration.jsonl", "examples/tiny-llada/heldout.jsonl"
SMALLEST, LARGEST = 15_000, 45_000


def even_choice(texts: dict[str, str], most_bytes: int) -> dict[str, str]:
    """Take evenly spaced files, by sorted name: the spacing that best fills ``most_bytes``."""
    names = sorted(texts)
    best: dict[str, str] = {}
    best_size = 0
    for count in range(1, len(names) + 1):
        spaced = [names[place * len(names) // count] for place in range(count)]
        size = sum(len(texts[name].encode()) for name in spaced)
        if best_size < size <= most_bytes:
            best, best_size = {name: texts[name] for name in spaced}, size
    return best


def write(path: Path, texts: dict[str, str]) -> None:
    """Write one JSON object a line, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"name": n, "text": t}, ensure_ascii=False) for n, t in texts.items())
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    print(f"{path.relative_to(ROOT)}: {len(texts)} files, {path.stat().st_size:,} bytes")


def main() -> None:
    """Write both files."""
    train, held_out = split()
    fitting = {n: t for n, t in train.items() if SMALLEST <= len(t.encode()) <= LARGEST}
    write(ROOT / CALIBRATION, even_choice(fitting, 600_000))
    write(ROOT / HELD_OUT, even_choice(held_out, 300_000))


if __name__ == "__main__":
    main()
