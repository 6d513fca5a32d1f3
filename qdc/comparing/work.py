"""One piece of work for a process of its own: what is made, from what, and how it is judged.

What would give the same figures has the same digest, whoever asks for it and under which name.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from qdc.comparing.result import Record
from qdc.evaluation.evaluate import RATIOS
from qdc.ir.text_use import HeldOutPack, Pack
from qdc.models.document_tokens import DocumentTokens
from qdc.text.records import DEFAULT_FIELD

DIGITS = 16
"""Of a digest in the name of a file."""


class Calibrating(Record):
    """The samples that all methods share; None leaves an option to the passes."""

    text: Path | None = None
    text_field: str = DEFAULT_FIELD
    chat_fields: str | None = None
    samples: int | None = None
    length: int | None = None
    pack: Pack | None = None
    isolate: bool | None = None

    @property
    def overrides(self) -> dict[str, object]:
        """Options of passes, those that are given."""
        names = {"samples", "length", "pack", "isolate"}
        return {k: v for k, v in self.model_dump(include=names).items() if v is not None}


class Judging(Record):
    """The held-out text, and how it is measured."""

    text: Path
    field: str = DEFAULT_FIELD
    windows: int
    length: int | None = None
    """Tokens of a window; the model's longest if not given."""
    pack: HeldOutPack = "documents"
    ratios: tuple[float, ...] = RATIOS
    masks: int = 2
    """Mask drawings of each window and ratio."""
    behind_clean: bool = True
    """Whether a model whose attention goes by blocks reads each of them behind clean text."""


class Work(Record):
    """All that a process is told."""

    digest: str
    name: str
    what: str
    """Pipeline with every option, or what else is made."""
    model: Path
    pipeline: str
    """To be compiled; empty where another maker does the work."""
    overrides: dict[str, Any]
    """Options that go to passes of the pipeline, the seed among them."""
    seed: int | None
    calibration: Calibrating
    """What of it the pipeline reads."""
    document_tokens: DocumentTokens
    judging: Judging | None
    """None leaves the evaluation out."""
    original: Path
    """Where the original model's losses are kept between jobs."""
    scratch: Path
    """A folder for what is not kept."""
    keep: Path | None
    """Where the artifact goes, if it is kept."""
    device: str
    plugins: tuple[Path, ...]
    extra: dict[str, Any]
    """What other makers than the compiler are told."""


def digest_of(parts: object) -> str:
    """A short digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:DIGITS]
