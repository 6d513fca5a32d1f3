"""What an export was made from and what was proved of it."""

from typing import Any

from pydantic import Field

from qdc.ir.types import Frozen


class Probe(Frozen):
    """One batch of tokens that both models have read."""

    name: str
    tokens: int = Field(ge=0)
    equal: bool
    """Whether the logits are the same to the last bit."""
    difference: float
    """The largest absolute difference of two logits."""
    rounding: float
    """The same between the exported dtype and the artifact in fp32: what rounding costs."""


class Verification(Frozen):
    """The export against the artifact it was made from."""

    tensors: int = Field(ge=0)
    """Tensors that were compared: what the artifact decodes to, rounded to the exported dtype."""
    differing: tuple[str, ...] = ()
    """Those that are not equal."""
    probes: tuple[Probe, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything is equal."""
        return not self.differing and all(probe.equal for probe in self.probes)


class ExportReport(Frozen):
    """What ``qdc export`` has written."""

    out: str
    format: str
    dtype: str
    tensors: int
    nbytes: int
    """Bytes of all tensors."""
    shards: int
    types: dict[str, int] = Field(default_factory=dict)
    """Of a GGUF file: weights of each type."""
    decoded: int = 0
    """Of a GGUF file and of packed integers: quantized layers that stand decoded in it."""
    unrotated: int = 0
    """Layers whose inputs the artifact rotates: the rotation is multiplied out of their weights."""
    packed: int = 0
    """Layers that stand as packed integers of ``compressed-tensors``."""
    packed_as: str = ""
    """Their form, in words."""
    effective_bits: float | None = None
    """Bits of one of their weights, scales, zero points and shapes counted."""
    served_by: str = ""
    """Who runs them, in words."""
    qdc_version: str
    pipeline: str = ""
    """Of the compile, as the artifact says."""
    checkpoint_sha256: str = ""
    """Of the checkpoint that the artifact was made from, as it says."""
    verification: Verification | None = None

    def as_data(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return self.model_dump(mode="json")
