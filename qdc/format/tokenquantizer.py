"""Quantize the tokens of a value as an artifact says it: masked and visible ones, static or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qdc.ir.activations import RowFormat
from qdc.numerics.rowquantizer import RowCodes


@dataclass(frozen=True)
class TokenQuantizer:
    """How a value is quantized, with its static scales at hand."""

    form: RowFormat
    scale: Tensor | None = None
    """f32[classes, groups]; None where scales are dynamic."""
    zero: Tensor | None = None
    """i8[classes, groups]; None where there are none, or zero points are 0."""

    @classmethod
    def of(
        cls, form: RowFormat, stored: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Self:
        """Take the stored tensors of static scales, by suffix."""
        scale, zero = stored.get("input_scale"), stored.get("input_zero")
        return cls(
            form,
            None if scale is None else scale.to(device, torch.float32),
            None if zero is None else zero.to(device),
        )

    def quantize(self, values: Tensor, masked: Tensor | None) -> RowCodes:
        """Quantize f32[..., width]; ``masked`` is bool[...], and may be None without classes."""
        if self.scale is not None:
            return self.form.quantizer.quantize_on(
                values,
                self._of_token(self.scale, masked),
                None if self.zero is None else self._of_token(self.zero, masked),
            )
        clips = values.new_tensor(self.form.clip)[:, None]
        return self.form.quantizer.quantize(values, self._of_token(clips, masked))

    def round(self, values: Tensor, masked: Tensor | None) -> Tensor:
        """Quantize f32[..., width] and write it out. Gradients pass straight through."""
        if not values.requires_grad:
            return self.form.quantizer.dequantize(self.quantize(values, masked))
        with torch.no_grad():
            lost = self.form.quantizer.dequantize(self.quantize(values, masked)) - values
        return values + lost

    def _of_token(self, each: Tensor, masked: Tensor | None) -> Tensor:
        """What classes have, [classes, n], for each token, [..., n]."""
        if len(self.form.clip) == 1:
            return each[0]
        assert masked is not None, "which tokens are masked is known wherever classes are"
        return each[masked.to(each.device, torch.int64)]
