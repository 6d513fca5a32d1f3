"""Scales of components in 8 bits: codes beside the largest scale of their plane.

Ours. *Linear* codes are parts of the largest scale: a scale of a tenth of it is known to 2 % only.
*Logarithmic* ones have the same relative step everywhere, a 32nd of an octave, down to a 245th of
the largest scale: no scale is more than 1.1 % off.
"""

from typing import Final, Literal

import torch
from torch import Tensor

ScaleCode = Literal["linear", "logarithmic"]
HIGHEST: Final = 255
STEPS: Final = 32
"""Codes in an octave."""
FRACTIONS: Final = tuple(2.0 ** (step / STEPS) for step in range(STEPS))
"""Powers of two within an octave: a table, since devices disagree about the last bit of powers."""
OCTAVES: Final = tuple(2.0**octave for octave in range(-8, 1))


def encode_scales(scale: Tensor, code: ScaleCode) -> tuple[Tensor, Tensor]:
    """Round scales to 8 bits, the largest of each row stays as it is.

    Logarithmic codes below the smallest but zero become it or 0, whichever is nearer.

    Args:
        scale: f32[..., s], not negative, finite in fp16.
        code: Which codes.

    Returns:
        Codes u8[..., s], peaks f16[..., 1]. Decoded scales are encoded to the same values again.
    """
    peak = scale.amax(dim=-1, keepdim=True).to(torch.float16)
    wide = peak.to(torch.float32)
    part = scale / torch.where(wide > 0, wide, 1.0)
    if code == "linear":
        codes = (part * HIGHEST).round()
    else:
        codes = (HIGHEST + STEPS * torch.log2(part.clamp(min=2.0**-16))).round().clamp(min=1)
        smallest = 2.0 ** ((1 - HIGHEST) / STEPS)
        codes = torch.where(part < smallest / 2, 0.0, codes)
    return codes.clamp(0, HIGHEST).to(torch.uint8), peak


def decode_scales(codes: Tensor, peak: Tensor, code: ScaleCode) -> Tensor:
    """Read codes, bit for bit as docs/format.md has it.

    Linear: code * peak / 255 in fp32. Logarithmic: peak * 2^((code - 255) / 32), the fraction of
    the power from a table in fp32, and 0 for code 0.

    Args:
        codes: u8[...].
        peak: f16, of a shape that spreads over the codes.
        code: Which codes.

    Returns:
        f32[...] that fit fp16.
    """
    wide = peak.to(torch.float32)
    if code == "linear":
        part = codes.to(torch.float32) * wide / HIGHEST
    else:
        below = codes.to(torch.int64) - HIGHEST
        table = torch.tensor(FRACTIONS, dtype=torch.float32, device=codes.device)
        octaves = torch.tensor(OCTAVES, dtype=torch.float32, device=codes.device)
        power = table[below % STEPS] * octaves[below // STEPS + len(OCTAVES) - 1]
        part = torch.where(codes > 0, power * wide, 0.0)
    return part.to(torch.float16).to(torch.float32)
