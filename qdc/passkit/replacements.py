"""Layers that are replaced together in one run of the original model, and what each loses of it.

Layers are replaced one at a time, but experts of a block some together, those at one place of each:
the gates, then the others. What a run with several loses is divided among them by their errors.
"""

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from qdc.ir.graph import LayerGraph, Stage
from qdc.ir.routing import rows_of

GROUPS = 8
"""Runs for all experts of a block at one place, if nobody says how many are replaced together."""
Bundle = list[tuple[Stage, list[str]]]
"""Stages whose layers are replaced in the same runs, and names of the layers."""


class Fit(NamedTuple):
    """A layer as it is tried."""

    name: str
    dense: Tensor | None
    """``f32[rows, columns]``; None once it was tried."""
    error: float
    """Its output error, as a mean over its tokens."""
    tokens: int
    """Tokens that are routed to it, of all samples."""


class Replacement(NamedTuple):
    """Layers that are tried in one run."""

    name: str
    layers: tuple[Fit, ...]

    def weights(self) -> dict[str, Tensor]:
        """What takes the place of the layers' weights."""
        return {fit.name: fit.dense for fit in self.layers if fit.dense is not None}

    def without_weights(self) -> "Replacement":
        """The same, of which only figures are needed any more."""
        return Replacement(self.name, tuple(fit._replace(dense=None) for fit in self.layers))

    def parts(self) -> Iterator[tuple[str, float, float]]:
        """Each layer, its error, and its share of what the run has lost: by errors and tokens."""
        whole = sum(fit.error * fit.tokens for fit in self.layers)
        for fit in self.layers:
            alone = 1 / len(self.layers)
            yield fit.name, fit.error, fit.error * fit.tokens / whole if whole else alone


def bundles(
    graph: LayerGraph, wave: Sequence[Stage], wanted: Container[str], together: int | None
) -> list[Bundle]:
    """The stages of a wave, with the layers among ``wanted``: one, or some experts, a bundle.

    Experts stay in their order, which is that of a router with groups. ``together`` of them are
    one bundle; one in ``GROUPS`` if None.
    """
    routed = [stage for stage in wave if rows_of(graph, stage.value) is not None]
    size = together or -(-len(routed) // GROUPS) or 1
    parts = [routed[start : start + size] for start in range(0, len(routed), size)]
    parts += [[stage] for stage in wave if stage not in routed]
    found = [
        [(stage, [name for name in stage.layers if name in wanted]) for stage in part]
        for part in parts
    ]
    return [[(stage, names) for stage, names in part if names] for part in found]


def own_part(bundle: Bundle, own: Container[str]) -> Bundle:
    """What a process tries: its own layers of a stage, or a bundle that begins with one."""
    if len(bundle) == 1:
        ((stage, names),) = bundle
        mine = [name for name in names if name in own]
        return [(stage, mine)] if mine else []
    return bundle if bundle and bundle[0][1][0] in own else []
