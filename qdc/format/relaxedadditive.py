"""Codebooks and row scales that gradients can move; the codes stay as they are.

Source: the block tuning of AQLM (arXiv 2401.06118), which leaves the codes alone too.
"""

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.additive import Additive


class RelaxedAdditive(Relaxation):
    """One layer: a parameter for all codebooks, and one for the row scales."""

    def __init__(self, state: Additive, bits: int, columns: int) -> None:
        """Start from a lowered layer.

        Args:
            state: codes, codebooks and scales.
            bits: of a code, which decides the dtype of the working codes.
            columns: of the layer; the last vector may reach beyond them.
        """
        super().__init__()
        self.codes, self.columns = state.codes, columns
        self.kind = torch.int32 if bits == 16 else torch.uint8
        self.codebook = nn.Parameter(state.codebook.clone())
        self.scale = nn.Parameter(state.scale.clone())

    def dense(self) -> Tensor:
        """The formula of the codec on the numbers as they are now."""
        state = Additive(self.codes, self.codebook, self.scale)
        return state.dense()[:, : self.columns]

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Entries and scales by their mean size; both are continuous."""
        return [
            (TrainableKind.SCALE, tensor, float(tensor.detach().abs().mean()))
            for tensor in (self.codebook, self.scale)
        ]

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Codebooks and scales in fp16, a scale not below 0. Raises ``OverflowError``."""
        state = Additive(self.codes, self.codebook, self.scale.clamp(min=0)).stored()
        return {
            "codes": self.codes.to(self.kind),
            "codebook": state.codebook.half(),
            "row_scale": state.scale.half(),
        }
