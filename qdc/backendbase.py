"""What a backend is: it receives a compiled model region by region and writes an artifact."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph, Region
from qdc.passbase import Configured, Kinds

if TYPE_CHECKING:
    from qdc.artifact.writer import ArtifactWriter
    from qdc.ir.tensors import TensorTable


class Backend(Configured):
    """An emitter. It shares the form of passes: options are fields, ``str`` rebuilds it."""

    requires: ClassVar[Kinds] = (Packed,)
    """Annotations that every quantized layer must carry."""

    @abstractmethod
    def emit_region(
        self, writer: "ArtifactWriter", graph: LayerGraph, region: Region, tensors: "TensorTable"
    ) -> None:
        """Write one finished region; its tensors are released afterwards."""

    @abstractmethod
    def finish(self, writer: "ArtifactWriter", graph: LayerGraph) -> None:
        """Write what lies outside the regions, the configuration and the final dump."""
