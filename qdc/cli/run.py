"""``qdc run``: fill the gaps of a text."""

import sys
from pathlib import Path

from qdc.cli.models import open_runnable
from qdc.cli.terminal import given_text, print_json, progress
from qdc.errors import QdcError
from qdc.evaluation.infill import infill, parse_gaps
from qdc.runtime.options import RunOptions


def run_command(
    model: Path, text: str, gap: int, steps: int | None, running: RunOptions, *, as_json: bool
) -> None:
    """Load, fill, print."""
    wanted = given_text(text)
    opened = open_runnable(
        model, running.device, running.plugins, running.backend, verify=running.verify
    )
    tokens, masked = parse_gaps(wanted, opened.encode, opened.facts.mask_token_id, gap)
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
            opened.facts.mask_token_id,
            steps,
            lambda done, total: update("fill the gaps", done, total),
            opened.facts.attention_block,
        )
    result = opened.decode(filled[0].tolist())
    if as_json:
        found = filled[masked].tolist()
        print_json({"text": result, "filled": [opened.decode([token]) for token in found]})
    else:
        sys.stdout.write(result + "\n")
