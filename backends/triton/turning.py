"""What rotates the inputs of linears whose codec does not: a launch in front of theirs."""

import torch
from torch import Tensor, nn

from qdc.numerics.hadamard import RandomHadamard, random_signs, transform_size

from .checking import KernelMismatch
from .modules import require_kernels, rows_of


class InputRotation(nn.Module):
    """A rotation of what linears read, as the artifact's configuration names it.

    Args:
        columns: of what is read.
        seed: of the rotation.
        device: where its signs go.

    Raises:
        QdcError: this machine has neither CUDA nor the interpreter.
    """

    signs: Tensor

    def __init__(self, columns: int, seed: int, device: torch.device | str) -> None:
        super().__init__()
        require_kernels(torch.device(device))
        self.columns, self.seed = columns, seed
        signs = random_signs(columns, seed).to(device, torch.int8)
        # No part of a state dict: the seed says all of it.
        self.register_buffer("signs", signs[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., columns]``, rotated in fp32 as the format says, in the dtype of ``x``."""
        found: Tensor = torch.ops.qdc.rotated_inputs(rows_of(x, self.columns), self.signs)
        return found.reshape(x.shape)

    def extra_repr(self) -> str:
        """Columns of the transform, for ``print(model)``."""
        return f"{self.columns} columns by {transform_size(self.columns)}"


class CheckedRotation(nn.Module):
    """A rotation that is compared with the format's at each call.

    They have the same fp32; halves may be rounded to the other neighbour, as the interpreter does.
    """

    def __init__(self, rotation: InputRotation, label: str) -> None:
        """Hold it, and the layers in front of which it stands."""
        super().__init__()
        self.rotation, self.label = rotation, label

    def forward(self, x: Tensor) -> Tensor:
        """What the rotation gives. Raises ``KernelMismatch`` where the format gives another."""
        found: Tensor = self.rotation(x)
        turn = RandomHadamard.of(self.rotation.columns, self.rotation.seed, x.device)
        expected = turn.forward(x.float())
        info = torch.finfo(x.dtype)
        unit = 0.0 if x.dtype == torch.float32 else info.eps
        allowed = unit * expected.abs().clamp(min=info.smallest_normal)
        off = (found.float() - expected).abs()
        # Beyond the largest half, and of no number, nothing has a distance.
        odd = (expected.abs() < info.max) & ~(off <= allowed)
        if bool(odd.any()):
            raise KernelMismatch(
                f"the rotation in front of {self.label} is off by {float(off[odd].max()):.3g}, and "
                f"has to be the format's; its input is {x.dtype} {tuple(x.shape)}; load with the "
                "backend reference, and report it with the card and the versions"
            )
        return found
