"""Run packed weights on a GPU, and write the portable format after a look whether that can be.

The artifact is that of the reference backend, byte for byte but for the name of what wrote it: any
backend loads it, and this one loads what the reference wrote. Beside it lies ``kernels.json``,
which says what would be launched for each stage. Nothing reads it: it is for people and scripts.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from qdc.artifact.emission import Emission
from qdc.artifact.writer import json_bytes
from qdc.backends.reference import Reference
from qdc.errors import QdcError
from qdc.format.codec import Codec, Lowered
from qdc.ir.activations import RotatedHeads, Rotation
from qdc.ir.graph import Region
from qdc.pipeline.foreseen import FileSize, Foreseen
from qdc.pipeline.passbase import Kinds
from qdc.version import install

from .listing import NAME, list_kernels
from .parts import refuse_codecs
from .support import require_triton

if TYPE_CHECKING:
    from qdc.pipeline.backendbase import Runtime


class Triton(Reference):
    """Compute from packed weights on a CUDA device; write what the reference backend writes."""

    name: ClassVar[str] = "triton"
    activations: ClassVar[Kinds] = (Rotation, RotatedHeads)

    ahead: tuple[Literal["sm_80", "sm_90"], ...] = Field(
        default=(),
        description="compile: also compile the kernels for these GPUs, and list what they take",
    )

    @model_validator(mode="after")
    def _compiler_is_there(self) -> "Triton":
        if self.ahead and find_spec("triton") is None:
            raise ValueError(f"ahead needs the package triton: {install('triton')}")
        return self

    def check(self, codecs: Mapping[str, Codec]) -> None:
        """Refuse layers that the kernels cannot run. Raises ``QdcError`` naming them."""
        refuse_codecs(codecs)

    def runtime(self, device: torch.device, dtype: torch.dtype | None) -> "Runtime":
        """Packed modules, in bf16 if not told otherwise.

        Raises:
            QdcError: ``ahead`` is given, which is for compiles; triton is not installed, the device
                has no CUDA, or the dtype is not one that kernels compute in.
        """
        if self.ahead:
            raise QdcError(
                "ahead is for writing an artifact: when one is loaded, kernels are compiled for "
                "the GPU that is there",
                help="leave it out here, or give it to qdc compile --backend",
            )
        require_triton(device)
        from .checking import wanted
        from .runtime import PackedRuntime

        return PackedRuntime(device, torch.bfloat16 if dtype is None else dtype, wanted())

    def beside(self, foreseen: Foreseen) -> list[FileSize]:
        """The files of the reference backend, and ``kernels.json``; without ``ahead`` exactly."""
        joined = foreseen.facts.get("frontend") == "fx"
        listed = list_kernels(foreseen.graph, foreseen.codecs, joined).model_dump(mode="json")
        if self.ahead:
            foreseen.unread.append("what compiled kernels add to kernels.json")
        return [*super().beside(foreseen), FileSize(NAME, len(json_bytes(listed)))]

    def emit_region(self, emission: Emission, region: Region) -> None:
        """Write the region's shard, if the kernels can run all of it."""
        self.check(_codecs(emission, region.nodes))
        super().emit_region(emission, region)

    def finish(self, emission: Emission) -> None:
        """Write the rest, and ``kernels.json``."""
        codecs = _codecs(emission, tuple(node.name for node in emission.graph))
        self.check(codecs)
        super().finish(emission)
        joined = emission.facts.get("frontend") == "fx"
        listed = list_kernels(emission.graph, codecs, joined)
        if self.ahead:
            from .ahead import compile_all
            from .forms import forms

            architectures = [int(name.removeprefix("sm_")) for name in self.ahead]
            compiled = compile_all(list(forms()), architectures)
            found = tuple(form.model_dump(mode="json") for form in compiled)
            listed = listed.model_copy(update={"compiled": found})
        emission.writer.json(NAME, listed.model_dump(mode="json"))


def _codecs(emission: Emission, names: tuple[str, ...]) -> dict[str, Codec]:
    """The codecs of the quantized layers among these nodes, by path."""
    notes = {name: emission.graph.get(name, Lowered) for name in names}
    return {
        emission.graph[name].path: note.codec for name, note in notes.items() if note is not None
    }
