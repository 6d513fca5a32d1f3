"""``qdc run``: fill the gaps of a text."""

import sys
from pathlib import Path

from qdc.cli.models import open_runnable
from qdc.cli.terminal import given_text, print_json, progress
from qdc.errors import QdcError
from qdc.evaluation.infill import GAP, enclose, infill, parse_gaps
from qdc.runtime.options import RunOptions


def run_command(
    model: Path,
    text: str,
    gap: int,
    steps: int | None,
    running: RunOptions,
    *,
    special: bool,
    as_json: bool,
) -> None:
    """Load, fill, print; what stands around the text for the model alone is not printed."""
    wanted = given_text(text)
    opened = open_runnable(
        model, running.device, running.plugins, running.backend, running.document_tokens,
        verify=running.verify,
    )  # fmt: skip
    encode = opened.encode

    def read(piece: str) -> list[int]:
        return encode.piece(piece, special=special)

    mask = opened.facts.mask
    if GAP not in wanted and not special and mask in encode.piece(wanted, special=True):
        raise QdcError(
            "found no gap to fill: the mask token is in the text by its name, which is text",
            help=f"add --special, which reads special tokens as such, or write {GAP} for a gap",
        )
    tokens, masked = parse_gaps(wanted, read, mask, gap)
    around = encode.missing(tokens[0].tolist(), special=special)
    first, end = len(around.before), len(around.before) + tokens.shape[1]
    tokens, masked = enclose(tokens, masked, around)
    if tokens.shape[1] > opened.facts.max_length:
        raise QdcError(
            f"the text has {tokens.shape[1]} tokens, the model takes {opened.facts.max_length}",
            help="shorten the text or the gaps",
        )
    with progress() as update:
        filled = infill(
            opened,
            tokens,
            masked,
            mask,
            steps,
            lambda done, total: update("fill the gaps", done, total),
            opened.facts.attention_block,
        )
    result = opened.decode(filled[0, first:end].tolist())
    if as_json:
        found = filled[masked].tolist()
        print_json({"text": result, "filled": [opened.decode([token]) for token in found]})
    else:
        sys.stdout.write(result + "\n")
