"""What an annotation is: one fact that a pass writes on a node, read back and checked."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, ClassVar

from qdc.ir.types import Frozen, TensorRef

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class Annotation(Frozen):
    """One fact on one node."""

    tag: ClassVar[str]
    """The name after ``@`` in the text form."""
    slot: ClassVar[str] = ""
    """Annotations of one slot replace each other on a node; the tag, unless said otherwise."""
    scratch: ClassVar[bool] = False
    """Its tensors are released at the end of the stage or region that made them."""
    of_weight: ClassVar[bool] = False
    """Its tensors stand for a weight: of several processes those get them that compute with it."""
    on: ClassVar[tuple[str, ...]] = ("linear",)
    """Operations of the nodes that may carry it; empty for all."""

    @classmethod
    def slot_name(cls) -> str:
        """The slot that this class fills."""
        return cls.slot or cls.tag

    @property
    def fills(self) -> str:
        """The slot that this annotation fills on its node."""
        return self.slot_name()

    def text(self) -> str:
        """What the text form prints after the tag: deterministic, on one line."""
        raise NotImplementedError(f"{type(self).__name__}.text")

    def words(self, beside: Collection["Annotation"]) -> str:
        """``text``, as it reads among all annotations of its node."""
        return self.text()

    @classmethod
    def from_text(cls, text: str) -> "Annotation | None":
        """The annotation whose ``text`` this is; None where a text does not say all of one.

        Rounded numbers and shortened lists do not: those are read from the exact fields, which
        the text form in full prints below them.
        """
        return None

    @property
    def counts_signs(self) -> bool | None:
        """Whether the bits of the node's weights are signs; None if this annotation knows not."""
        return None

    def problems(self, node: "Node") -> Iterator[str]:
        """Yield what is wrong with this annotation on this node; the verifier asks."""
        yield from ()

    def refs(self) -> Iterator[TensorRef]:
        """Yield every tensor that this annotation names."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, TensorRef):
                    yield item
