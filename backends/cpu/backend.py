"""Run packed weights on a CPU; write the portable format."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from qdc.backends.reference import Reference
from qdc.errors import QdcError

if TYPE_CHECKING:
    from qdc.pipeline.backendbase import Runtime


class Cpu(Reference):
    """Compute from packed weights on a CPU; write what the reference backend writes."""

    name: ClassVar[str] = "cpu"

    arithmetic: Literal["fast", "f32"] = Field(
        default="fast",
        description="running: products in 16 bits where that is faster, or in fp32",
    )

    def runtime(self, device: torch.device, dtype: torch.dtype | None) -> "Runtime":
        """Packed modules, with activations in fp32 if not told otherwise.

        Raises:
            QdcError: the device is no CPU, or the dtype is not one of activations.
        """
        from .modules import DTYPES
        from .runtime import CpuRuntime

        if device.type != "cpu":
            raise QdcError(
                f"the backend cpu runs on CPUs, not on {device.type}",
                help="use --device cpu, or --backend reference, or triton on a GPU",
            )
        kind = torch.float32 if dtype is None else dtype
        if kind not in DTYPES:
            raise QdcError(
                f"the backend cpu takes activations in fp32, bf16 and fp16, not {kind}",
                help="load with the backend reference",
            )
        return CpuRuntime(device, kind, self.arithmetic)
