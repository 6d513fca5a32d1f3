"""Binary components that gradients can move: latent weights behind the signs, and all scales."""

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.blocks import block_slices
from qdc.numerics.components import Components, side_by_side, stored
from qdc.numerics.rounding import latent_start, nearest_signs, round_to_levels
from qdc.numerics.scalecodes import ScaleCode


class RelaxedBinary(Relaxation):
    """Blocks of binary components; those of equal order and width are moved together."""

    def __init__(
        self,
        blocks: list[Components],
        weight: Tensor,
        block: int,
        scale_bits: int,
        scale_code: ScaleCode,
    ) -> None:
        """Start from fitted blocks.

        Args:
            blocks: left to right.
            weight: f32[rows, columns], the original weight: latent weights start near it.
            block: columns of a block.
            scale_bits: as for ``components.stored``.
            scale_code: as there.
        """
        super().__init__()
        self.block, self.scale_bits, self.scale_code = block, scale_bits, scale_code
        self.slices = block_slices(weight.shape[1], block)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, components in enumerate(blocks):
            order, _, width = components.signs.shape
            groups.setdefault((order, width), []).append(index)
        self.groups = list(groups.values())
        self.latent, self.rows, self.columns = (nn.ParameterList() for _ in range(3))
        for group in self.groups:
            signs = torch.stack([blocks[i].signs for i in group], dim=2).float()
            rows = torch.stack([blocks[i].row_scale for i in group], dim=2)
            columns = torch.stack([blocks[i].col_scale for i in group], dim=1)
            parts = torch.stack([weight[:, self.slices[i]] for i in group], dim=1)
            self.latent.append(nn.Parameter(latent_start(parts, signs, rows, columns)))
            self.rows.append(nn.Parameter(rows))
            self.columns.append(nn.Parameter(columns))

    def dense(self) -> Tensor:
        """Round the latent weights to the nearest levels."""
        found: dict[int, Tensor] = {}
        for group, latent, rows, columns in self._groups():
            found.update(zip(group, round_to_levels(latent, rows, columns).unbind(1), strict=True))
        return torch.cat([found[i] for i in range(len(self.slices))], dim=1)

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation, scales by their mean size."""
        found: list[tuple[TrainableKind, nn.Parameter, float]] = []
        for _, latent, rows, columns in self._groups():
            found.append((TrainableKind.CODE, latent, float(latent.detach().std())))
            found.append((TrainableKind.SCALE, rows, float(rows.detach().abs().mean())))
            found.append((TrainableKind.SCALE, columns, float(columns.detach().abs().mean())))
        return found

    @torch.no_grad()
    def blocks(self) -> list[Components]:
        """Rounded components: scales as they are stored, signs the nearest to the latent."""
        found: dict[int, Components] = {}
        for group, latent, rows, columns in self._groups():
            signs = nearest_signs(latent, rows, columns)
            for place, index in enumerate(group):
                raw = Components(
                    signs[:, :, place].to(torch.int8), rows[:, :, place], columns[:, place]
                )
                rounded = stored(raw, self.scale_bits, self.scale_code)
                again = nearest_signs(
                    latent[:, place : place + 1],
                    rounded.row_scale[:, :, None],
                    rounded.col_scale[:, None],
                )
                found[index] = rounded._replace(signs=again[:, :, 0].to(torch.int8))
        return [found[i] for i in range(len(self.slices))]

    def working(self) -> dict[str, Tensor]:
        """The working tensors of the multi-binary codec."""
        return side_by_side(self.blocks(), self.block)

    def _groups(self) -> list[tuple[list[int], nn.Parameter, nn.Parameter, nn.Parameter]]:
        return list(zip(self.groups, self.latent, self.rows, self.columns, strict=True))
