"""Parameters outside the quantized weights that a pass has changed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation
from qdc.ir.types import BYTES, Parameter, TensorRef, shape_text

if TYPE_CHECKING:
    from qdc.ir.graph import Node

MATRICES = ("linear", "embedding")
FLOATING = ("f64", "f32", "f16", "bf16")


class Tuned(Annotation):
    """Norm gains and biases in place of the checkpoint's, and biases where a linear had none.

    The artifact stores these tensors as they are, so what calibration computes with is what a
    reader gets. The weight of a linear or an embedding is lowered, never tuned.
    """

    tag: ClassVar[str] = "tuned"
    on: ClassVar[tuple[str, ...]] = ()
    roles: tuple[str, ...] = Field(min_length=1)
    """``weight`` or ``bias``: which parameter each tensor replaces."""
    tensors: tuple[TensorRef, ...] = Field(min_length=1)

    def find(self, role: str) -> TensorRef | None:
        """The tensor of this role, or None."""
        return dict(zip(self.roles, self.tensors, strict=True)).get(role)

    def added(self, node: "Node") -> tuple[str, ...]:
        """Roles that the checkpoint has no tensor for."""
        return tuple(role for role in self.roles if _parameter(node, role) is None)

    def added_bytes(self, node: "Node") -> int:
        """Stored bytes beyond those of the checkpoint's own tensors: added or widened ones."""
        owned = [_parameter(node, role) for role in self.roles]
        before = sum(p.elements({}) * BYTES[p.dtype] for p in owned if p is not None)
        return sum(ref.nbytes for ref in self.tensors) - before

    def text(self) -> str:
        """``weight f32[256]   bias f16[64]``."""
        return "   ".join(
            f"{role} {shape_text(ref.dtype, ref.shape)}"
            for role, ref in zip(self.roles, self.tensors, strict=False)
        )

    def problems(self, node: "Node") -> Iterator[str]:
        """Every tensor has the shape of what it stands for."""
        if len(self.roles) != len(self.tensors):
            yield f"{len(self.roles)} roles for {len(self.tensors)} tensors"
        if len(set(self.roles)) != len(self.roles):
            yield "a role is tuned twice"
        for role, ref in zip(self.roles, self.tensors, strict=False):
            parameter = _parameter(node, role)
            added = parameter is None and node.op == "linear" and role == "bias"
            if role == "weight" and node.op in MATRICES:
                yield f"the weight of a {node.op} is lowered, not tuned"
            elif parameter is None and not added:
                yield f"the node has no {role}"
            else:
                shape = node.weight.shape[:1] if parameter is None else parameter.shape
                if ref.shape != shape:
                    yield f"{role} {ref} does not fit {list(shape)}"
            if ref.dtype not in FLOATING:
                yield f"{role} is {ref.dtype}, not floating point"


def _parameter(node: "Node", role: str) -> Parameter | None:
    return next((p for p in node.parameters if p.role == role), None)
