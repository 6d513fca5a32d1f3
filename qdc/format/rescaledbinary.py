"""Binary components whose scales move and whose signs stay."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from qdc.format.rescaling import Dense, NamedScales
from qdc.numerics.components import Components, side_by_side, stored
from qdc.numerics.scalecodes import ScaleCode

Tensors = Mapping[str, Tensor]


class RescaledBinary(NamedScales):
    """Row and column scales of all planes, rounded as the artifact holds them."""

    def __init__(
        self,
        dense: Dense,
        components: Callable[[Tensors], Iterator[Components]],
        block: int,
        scale_bits: int,
        scale_code: ScaleCode,
    ) -> None:
        """Take a format.

        Args:
            dense: of the codec.
            components: the blocks of its working tensors.
            block: columns of a block.
            scale_bits: as for ``components.stored``.
            scale_code: likewise.
        """
        super().__init__(dense, ("row_scale", "col_scale"))
        self._components, self._block = components, block
        self._scale_bits, self._scale_code = scale_bits, scale_code

    def working(self, working: Tensors, scales: Tensors) -> dict[str, Tensor]:
        """Canonical components, so a scale below 0 flips signs. Raises ``OverflowError``."""
        moved = self._components({**working, **scales})
        blocks = [stored(c, self._scale_bits, self._scale_code) for c in moved]
        return side_by_side(blocks, self._block)
