"""What a peer gives back, on disk and in memory, and what its format costs."""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def grouped_bits(code_bits: int, group: int, scale_bits: int = 16, zero_bits: int = 2) -> float:
    """Stored bits a weight where each ``group`` of one row has its own scale and zero point."""
    return code_bits + (scale_bits + zero_bits) / group


def most_levels(weight: Tensor, group: int) -> int:
    """Return the largest number of different values in a group of ``f32[rows, columns]``.

    It proves that a dense weight fits the format whose bits are claimed: 2 bits are 4 levels.
    """
    ordered = weight.reshape(-1, group).sort(1).values
    return int((ordered.diff(dim=1) != 0).sum(1).max()) + 1


def check_levels(weights: dict[str, Tensor], bits: int, group: int) -> None:
    """Raise QdcError if a group holds more values than ``bits`` can name."""
    wrong = [name for name, weight in weights.items() if most_levels(weight, group) > 2**bits]
    if wrong:
        raise QdcError(
            f"groups of {group} weights hold more than {2**bits} levels: "
            "the claimed bits would be wrong",
            where=wrong,
            help="check the library's version against the one in bench/README.md",
        )


@dataclass(frozen=True)
class Grid:
    """A uniform grid of ``bits``: a scale of 16 bits and a zero point for each group of a row."""

    bits: int
    group: int
    zero_bits: int


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
    """What a library found, its bits counted and proved. Raises QdcError as ``check_levels``."""
    check_levels(weights, grid.bits, grid.group)
    zero = "packed integer" if grid.zero_bits == grid.bits else f"fp{grid.zero_bits}"
    counted = f"counted: codes, one fp16 scale and one {zero} zero point a group"
    return PeerResult(
        name=name,
        version=version,
        weights=weights,
        effective_bits=grouped_bits(grid.bits, grid.group, 16, grid.zero_bits),
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
