"""What a peer gives back, on disk and in memory, and what its format costs."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.common.clocks import Stopwatch
from qdc.errors import QdcError

FACTS, WEIGHTS = "peer.json", "weights.safetensors"


class MissingLibrary(QdcError):
    """The library that a peer is made of is not installed here."""


@dataclass(frozen=True)
class PeerResult:
    """One run of one library.

    ``weights`` holds the dense ``f32[rows, columns]`` of each quantized linear by our layer path.
    ``code_bits`` counts codes alone, ``effective_bits`` also scales and zero points, both a weight.
    ``seconds`` is the library's work, without reading the model; the checks in it take about 1 %;
    ``processor_seconds`` is what it took of all cores together;
    ``options`` is what it was given, ``notes`` what a reader must know to believe the figures.
    """

    name: str
    version: str
    weights: dict[str, Tensor]
    effective_bits: float
    code_bits: float
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    processor_seconds: float = 0.0


def save(result: PeerResult, folder: Path) -> None:
    """Write ``peer.json`` and ``weights.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in result.weights.items()}, folder / WEIGHTS)
    facts = {k: v for k, v in vars(result).items() if k != "weights"}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> PeerResult:
    """Read what ``save`` wrote."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    facts["notes"] = tuple(facts["notes"])
    return PeerResult(weights=load_file(folder / WEIGHTS), **facts)


@dataclass(frozen=True)
class Grid:
    """A uniform grid of ``bits``: a scale of 16 bits and a zero point for each group of a row."""

    bits: int
    group: int
    zero_bits: int
    flat: bool = False
    """Whether a group that a row does not fill goes on in the next one; else it is shorter."""

    def split(self, weight: Tensor) -> Tensor:
        """The groups of ``f32[rows, columns]``, ``[groups, group]``.

        A shorter one repeats its last weight, which adds no level.
        """
        rows = weight.reshape(1, -1) if self.flat else weight
        missing = -rows.shape[1] % self.group
        ends = rows[:, -1:].expand(-1, missing)
        return torch.cat([rows, ends], 1).reshape(-1, self.group)

    def stored(self, weight: Tensor) -> int:
        """Bits of a weight's codes, scales and zero points."""
        groups = len(self.split(weight))
        return self.bits * weight.numel() + (16 + self.zero_bits) * groups

    def effective_bits(self, weights: Mapping[str, Tensor]) -> float:
        """Stored bits of a quantized weight."""
        total = sum(weight.numel() for weight in weights.values())
        return sum(self.stored(weight) for weight in weights.values()) / total

    def most_levels(self, weight: Tensor) -> int:
        """Return the largest number of different values in a group of ``f32[rows, columns]``.

        It proves that a dense weight fits the format whose bits are claimed: 2 bits are 4 levels.
        """
        ordered = self.split(weight).sort(1).values
        return int((ordered.diff(dim=1) != 0).sum(1).max()) + 1

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raise QdcError if a group holds more values than ``bits`` can name."""
        most = 2**self.bits
        wrong = [name for name, weight in weights.items() if self.most_levels(weight) > most]
        if wrong:
            raise QdcError(
                f"groups of {self.group} weights hold more than {most} levels: "
                "the claimed bits would be wrong",
                where=wrong,
                help="check the library's version against the one in bench/README.md",
            )


def grid_result(
    name: str,
    version: str,
    weights: dict[str, Tensor],
    grid: Grid,
    watch: Stopwatch,
    *,
    options: dict[str, Any],
    notes: tuple[str, ...],
) -> PeerResult:
    """What a library found, its bits counted and proved. Raises QdcError as ``Grid.check``."""
    grid.check(weights)
    zero = "packed integer" if grid.zero_bits == grid.bits else f"fp{grid.zero_bits}"
    counted = f"counted: codes, one fp16 scale and one {zero} zero point a group"
    return PeerResult(
        name=name,
        version=version,
        weights=weights,
        effective_bits=grid.effective_bits(weights),
        code_bits=grid.bits,
        seconds=watch.seconds,
        processor_seconds=watch.processor,
        options=options,
        notes=(*notes, watch.note(), counted),
    )


def require(module: str, install: str) -> Any:
    """Import a library, or raise MissingLibrary with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary(
            f"the library '{module}' cannot be imported: {error}", help=install
        ) from error
