"""What a plan knows of a compile's result, for backends that say how large their files will be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from qdc.checkpoint.folder import Checkpoint
    from qdc.format.codec import Codec
    from qdc.ir.graph import LayerGraph
    from qdc.ir.types import ValueType
    from qdc.models.families import Families


class FileSize(NamedTuple):
    """One file, before it is written."""

    name: str
    nbytes: int
    tensor_bytes: int = 0
    """Of them, tensor data."""


@dataclass(frozen=True)
class Foreseen:
    """A compiled model that was worked out from shapes."""

    checkpoint: "Checkpoint"
    """Its configuration and its folder; the shards may be missing."""
    graph: "LayerGraph"
    """With the annotations that a compile leaves, as far as passes foretell them."""
    codecs: "Mapping[str, Codec]"
    """Of each quantized layer, by path."""
    stored: "Mapping[str, ValueType]"
    """Every tensor that is written, by its name."""
    facts: Mapping[str, object]
    """As those of an emission, with digests of the right length."""
    families: "Families"
    unread: list[str] = field(default_factory=list)
    """What could not be counted, in words; whoever counts adds to it."""

    @property
    def folder(self) -> "Path":
        """The folder of the checkpoint."""
        return self.checkpoint.folder
