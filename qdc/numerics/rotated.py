"""What a rotation of a layer's inputs does to its weight, and to the statistics of its inputs.

With inputs x' = x D^-1 Q, for an orthogonal Q and a diagonal D, and the weight W' = W D Q, outputs
stay as they are, and so does the loss tr(E M E^T) of an error. Nothing has to be collected again:
the moment, its factor and the cross moment are rotated. Source: related-systems.md 14.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.numerics.hadamard import RandomHadamard

FREE = 1e3
"""Standard deviation left to a column that pads, against the freest of the others."""


class InputSpace(NamedTuple):
    """Coordinates of the inputs of a layer.

    Attributes:
        rotation: Q.
        scale: f32[columns], the diagonal of D; None for 1.
        padding: Columns added behind the last one. They hold 0, are correlated with no other, and
            an error in them costs next to nothing.
        reverse: Whether columns are counted from the last one, padding included.
    """

    rotation: RandomHadamard
    scale: Tensor | None = None
    padding: int = 0
    reverse: bool = False

    def weight(self, weight: Tensor) -> Tensor:
        """Bring f32[n, m] to these coordinates: W D Q, f32[n, m + padding]."""
        scaled = weight if self.scale is None else weight * self.scale
        return self._ordered(self.rotation.forward(scaled))

    def cross(self, cross: Tensor) -> Tensor:
        """Bring a cross moment, f32[m, m], here: Q^T D^-1 C D^-1 Q."""
        scaled = cross if self.scale is None else cross / self.scale / self.scale[:, None]
        half = self._ordered(self.rotation.forward(scaled))
        return self._ordered(self.rotation.forward(half.T.contiguous())).T.contiguous()

    def factor(self, upper: Tensor) -> Tensor:
        """Bring the factor U of an inverse moment, f32[m, m], here.

        The inverse moment becomes (U D Q)^T (U D Q). The triangular factor of a QR decomposition of
        U D Q is its root; nothing is squared or inverted on the way. fp64 inside.
        """
        root = self.weight(upper.to(torch.float64))
        free = FREE * float(upper.diagonal().max())
        own = torch.full((self.padding,), free, dtype=root.dtype, device=root.device).diag()
        root = torch.cat([root, self._ordered(pad(own, (len(upper), 0)), padded=True)])
        triangle = torch.linalg.qr(root, mode="r").R
        signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(torch.float64)
        upright: Tensor = (triangle * signs[:, None]).triu_().to(torch.float32)
        return upright

    def _ordered(self, values: Tensor, *, padded: bool = False) -> Tensor:
        wide = values if padded else pad(values, (0, self.padding))
        return wide.flip(-1) if self.reverse else wide


def balancing_scale(weight: Tensor, upper: Tensor) -> Tensor:
    """QuIP's scale of columns, (M_jj / sum over rows of W_ij^2)^(1/4), its geometric mean 1.

    It makes weights and inputs share what is uneven between them (arXiv 2307.13304). Columns
    without weights get 1.

    Args:
        weight: f32[n, m].
        upper: f32[m, m], U with inverse moment U^T U.

    Returns:
        f32[m], positive.
    """
    wide = upper.to(torch.float64)
    identity = torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    moment = torch.linalg.solve_triangular(wide, identity, upper=True).square().sum(1)
    energy = weight.to(torch.float64).square().sum(0)
    logs = (moment / energy).log() / 4
    logs = torch.where(energy > 0, logs, torch.nan)
    return (logs - logs.nanmean()).nan_to_num(0).exp().float()
