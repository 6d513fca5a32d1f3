"""Write the model card of the embedded model from the record of its training.

python examples/model_card.py examples/tiny-llada
"""

import json
import sys
from pathlib import Path
from typing import Any

import qdc
from qdc.evaluation.infill import infill, parse_gaps
from qdc.text.tokenizer import encoder, load_tokenizer

SAMPLES = (
    "for index, name in <mask><mask>(names):\n",
    "if not isinstance(value, str):\n    raise <mask><mask>('expected a string')\n",
    "    def __init__(self, *args, **kwargs):\n        super().<mask><mask><mask><mask>(*args)\n",
    "with open(path, 'rb') as f:\n    data = <mask>.read()\n",
    "import os\nimport sys\n\nprint(os.path.<mask>(sys.argv[0]))\n",
)


def write_card(folder: Path) -> None:
    """Write ``README.md`` into the model's folder."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(card(record, samples(folder)), encoding="utf-8")


def samples(folder: Path) -> list[tuple[str, str]]:
    """Fill the gaps of a few lines of code, greedily."""
    model, tokenizer = qdc.load_original(folder), load_tokenizer(folder)
    mask = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["mask_token_id"])
    found = []
    for text in SAMPLES:
        tokens, gaps = parse_gaps(text, encoder(tokenizer), mask)
        filled = infill(model, tokens, gaps, mask)
        found.append((text, str(tokenizer.decode(filled[0].tolist()))))
    return found


def card(record: dict[str, Any], filled: list[tuple[str, str]]) -> str:
    """Return the card's text."""
    runs = record["runs"]
    steps, tokens, seconds = (sum(run[k] for run in runs) for k in ("steps", "tokens", "seconds"))
    rates = ", then ".join(str(run["rate"]) for run in runs)
    unigram = record["unigram_cross_entropy"]
    losses = "\n".join(
        f"| {ratio} | {loss:.3f} | {loss / unigram:.0%} |"
        for ratio, loss in record["held_out_cross_entropy"].items()
    )
    shown = "\n".join(f"    {before!r}\n    {after!r}\n" for before, after in filled)
    return f"""# tiny-llada

The embedded model of qdc: a small masked-diffusion language model in the LLaDA layout, trained
from scratch by `examples/train_tiny.py`. It exists so that every quality number in this repository
is measured on a model that has learned something. It is no assistant.

| | |
|---|---|
| corpus | sources and documentation strings of Python's standard library, {record["files"]} files |
| tokens in the corpus | {record["tokens_in_corpus"]:,} (byte-level BPE, vocabulary 2,048) |
| held out | {len(record["held_out_files"])} files, {record["held_out_tokens"]:,} tokens |
| parameters | {record["parameters"]:,}, stored as bf16 |
| shape | 6 blocks, width 256, 4 heads, feed-forward 768, length {max(record["window_lengths"])} |
| objective | t ~ U(0, 1), cross-entropy of the masked tokens, averaged over each sequence |
| optimizer | Muon inside the blocks, AdamW outside, each run with decay to zero |
| steps | {steps:,} of {record["tokens_of_a_step"]:,} tokens, one run for each rate: {rates} |
| tokens seen | {tokens:,} |
| time | {seconds / 60:.0f} minutes on {record["device"]}, shared with other work |
| torch | {record["torch"]} |

Held-out masked cross-entropy, nats a token; a unigram model of the training text has {unigram:.3f}:

| mask ratio | cross-entropy | share of unigram |
|---|---|---|
{losses}

Gaps filled greedily, before and after:

{shown}
The text is under the licences in `qdc/data/NOTICE`. `heldout.jsonl` holds some of the files that
were held out, `training.json` the full record.
"""


if __name__ == "__main__":
    write_card(Path(sys.argv[1]))
