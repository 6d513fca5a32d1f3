"""Compile a torch module that the caller holds, instead of a folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from qdc.checkpoint.held import HeldModule
from qdc.compiling.options import CompileOptions
from qdc.errors import InvalidCalibration, InvalidPipeline, QdcError
from qdc.frontend.given import GivenFacts, open_given
from qdc.frontend.tracer import Program
from qdc.streaming.calibration import Calibration
from qdc.text.rows import no_text, rows_source
from qdc.text.source import read_source
from qdc.text.tokenizer import Encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = ("tokenizer", "mask_token_id", "vocabulary", "max_length", "logits_shift")
"""Arguments of ``qdc.compile`` that a module has and a folder has not."""


@dataclass(frozen=True)
class Given:
    """A module, and what its caller says of it."""

    module: nn.Module
    facts: GivenFacts
    tokenizer: Path | None
    """A folder with its files."""
    rows: Tensor | None
    """Token ids to calibrate on, instead of text."""

    @property
    def title(self) -> str:
        """What stands for a checkpoint's folder in reports."""
        return f"module {type(self.module).__name__}"

    def open(self) -> tuple[HeldModule, Program]:
        """Trace it. Raises as ``open_given``."""
        return open_given(self.module, HeldModule(self.module, self.tokenizer), self.facts)

    def calibration(self, options: CompileOptions) -> Calibration:
        """What samples are drawn from. Raises ``InvalidCalibration``."""
        if self.rows is not None:
            return Calibration(rows_source(self.rows), no_text)
        if self.tokenizer is None:
            raise InvalidCalibration(
                "the pipeline calibrates on text, and no tokenizer is given",
                help="give tokenizer=, or calibration= as a tensor of token ids [n, length]",
            )
        source = read_source(options.calibration, options.fields)
        return Calibration(source, Encoder(load_tokenizer(self.tokenizer), options.document_tokens))


@contextmanager
def given_module(
    module: nn.Module, options: dict[str, Any]
) -> Iterator[tuple[Given, dict[str, Any]]]:
    """Take what is a module's alone out of the arguments of a call.

    Yields:
        The module with it, while the tokenizer's files are there; and the arguments that are left.

    Raises:
        QdcError: an argument is none that a module can have.
    """
    left = {name: value for name, value in options.items() if name not in OWN}
    own = {name: options[name] for name in OWN if options.get(name) is not None}
    if left.pop("frontend", "auto") not in ("auto", "export"):
        raise InvalidPipeline("a module is traced by torch.export alone", help="leave frontend out")
    rows = left.get("calibration")
    if isinstance(rows, Tensor):
        del left["calibration"]
    for name in OWN[1:]:
        least = 1 if name in ("vocabulary", "max_length") else 0
        value = own.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise QdcError(f"{name}={value!r} is no number from {least} on")
    if own.get("logits_shift", 0) > 1:
        raise QdcError(f"logits_shift={own['logits_shift']} is neither 0 nor 1")
    with _folder(own.pop("tokenizer", None)) as folder:
        if folder is not None and "mask_token_id" not in own:
            own["mask_token_id"] = load_tokenizer(folder).mask_token_id
        yield (
            Given(module, GivenFacts(**own), folder, rows if isinstance(rows, Tensor) else None),
            left,
        )


@contextmanager
def _folder(tokenizer: "PreTrainedTokenizerBase | Path | str | None") -> Iterator[Path | None]:
    """The folder of a tokenizer; one that is an object is written to a temporary one."""
    if tokenizer is None or isinstance(tokenizer, Path | str):
        folder = None if tokenizer is None else Path(tokenizer)
        if folder is not None and not folder.is_dir():
            raise QdcError(
                f"tokenizer={str(tokenizer)!r} is no folder",
                help="give a tokenizer of transformers, or a folder that holds tokenizer.json",
            )
        yield folder
        return
    if not hasattr(tokenizer, "save_pretrained"):
        raise QdcError(
            f"tokenizer is a {type(tokenizer).__name__}, not one of transformers",
            help="give a tokenizer of transformers, or a folder that holds tokenizer.json",
        )
    with tempfile.TemporaryDirectory(prefix="qdc-tokenizer-") as written:
        tokenizer.save_pretrained(written)
        yield Path(written)
