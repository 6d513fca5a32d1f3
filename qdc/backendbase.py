"""What a backend is: it receives a compiled model region by region and writes an artifact."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph, Region
from qdc.passbase import Configured, Kinds

if TYPE_CHECKING:
    from qdc.artifact.emission import Emission


class Backend(Configured, ABC):
    """An emitter. It shares the form of passes: options are fields, ``str`` rebuilds it."""

    requires: ClassVar[Kinds] = (Packed,)
    """Annotations that every quantized layer must carry."""

    def layout(self, graph: LayerGraph) -> Mapping[str, tuple[str, ...]] | None:
        """For each safetensors file the nodes whose tensors it holds, for ``qdc plan``.

        None, as it is, where the backend does not say.
        """
        return None

    @abstractmethod
    def emit_region(self, emission: "Emission", region: Region) -> None:
        """Write one finished region; its tensors are released afterwards."""

    @abstractmethod
    def finish(self, emission: "Emission") -> None:
        """Write what lies outside the regions, the configuration and the final dump."""
