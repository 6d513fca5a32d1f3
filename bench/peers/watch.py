"""Compare the blocks that a library runs with ours, on the very inputs that it gives them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qdc.errors import QdcError

from .pair import TOLERANCE, Pair

COMPARED = 32
"""Samples on which blocks are compared inside a library; its first input is, on all of them."""


class BlockWatch:
    """Compares the blocks that a library runs with ours, on the very inputs that they are given.

    Every library first forwards a block with full-precision weights over all samples, for its
    targets or its statistics. ``apart`` is the largest difference over these outputs, as a share of
    their root mean square and the number's own size together, and must be rounding; the first block
    must also read our samples, in order. Later calls, on weights that are being quantized, are not
    looked at. A block that differs is refused as soon as it is seen: an hour of work may follow.
    """

    def __init__(self, pair: Pair, samples: Tensor, *, last: bool = True) -> None:
        """Begin to watch; without ``last`` a sample's last position is not compared."""
        self.apart = 0.0
        self._compared = slice(None if last else -1)
        self.seen = [0] * len(pair.native.model.layers)
        self._pair = pair
        self._samples = samples
        self._handles = [
            layer.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(pair.native.model.layers)
        ]

    def _hook(self, index: int) -> Callable[..., None]:
        def compare(module: Any, inputs: Any, named: dict[str, Any], output: Any) -> None:
            start = self.seen[index]
            if torch.is_grad_enabled() or start >= len(self._samples):
                return
            read = inputs[0] if inputs else named["hidden_states"]
            found = output[0] if isinstance(output, tuple) else output
            self.seen[index] = start + len(found)
            if index == 0:
                batch = self._samples[start : self.seen[index]]
                self._add(read, self._pair.embed(batch))
            if start < COMPARED:
                expected = self._pair.block(index, read.float())
                self._add(found[:, self._compared], expected[:, self._compared])

        # A library may compile its blocks; this is not to be traced with them.
        disable: Callable[..., Callable[..., None]] = torch.compiler.disable
        return disable(compare)

    def _add(self, found: Tensor, expected: Tensor) -> None:
        # Some Llamas have single numbers a thousand times the others', which round by their size.
        scale = expected.square().mean().sqrt() + expected.abs()
        apart = float(((found.float() - expected).abs() / scale).max())
        self.apart = max(apart, self.apart)  # in this order a NaN stays and is refused
        self._refuse_others()

    def _refuse_others(self) -> None:
        if not self.apart <= TOLERANCE:
            raise QdcError(
                f"the library's block outputs are {self.apart:.1e} of their size away from ours "
                f"(samples compared, block by block: {self.seen})",
                help="a mask, a position or a dtype was changed on the way",
            )

    def finish(self) -> str:
        """Stop watching; return a note, or raise QdcError if the library saw another model."""
        for handle in self._handles:
            handle.remove()
        self._refuse_others()
        if any(count < len(self._samples) for count in self.seen):
            raise QdcError(
                f"the library did not run every block on all samples: {self.seen}",
                help="compare with a version of it that does, see bench/README.md",
            )
        return f"block outputs inside the library are ours within {self.apart:.1e} of their size"
