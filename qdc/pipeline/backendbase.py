"""What a backend is: it receives a compiled model region by region and writes an artifact.

One that also runs artifacts gives a ``Runtime``, which puts modules in the place of quantized
layers. The loader builds and checks the model and knows nothing of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from qdc.errors import QdcError
from qdc.ir.activations import OfActivations
from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph, Region
from qdc.pipeline.foreseen import FileSize, Foreseen
from qdc.pipeline.passbase import Configured, Kinds
from qdc.pipeline.running import Resident, Running

if TYPE_CHECKING:
    from qdc.artifact.commit import SingleFile
    from qdc.artifact.emission import Emission
    from qdc.checkpoint.folder import Checkpoint
    from qdc.format.codec import Codec
    from qdc.format.weights import Weights
    from qdc.pipeline.registry import Registry


@dataclass(frozen=True)
class Runtime(ABC):
    """How a backend runs models, on one device and in one dtype."""

    device: torch.device
    dtype: torch.dtype
    """Of activations, and of every tensor that is not part of a quantized layer."""

    follows_activations: ClassVar[bool] = False
    """Whether its modules are called one by one, so that others can be put in front of them."""
    rotates: ClassVar[bool] = False
    """Whether its modules rotate what they read by themselves, if nothing else is done with it."""

    @abstractmethod
    def check(self, module: nn.Module, codecs: Mapping[str, "Codec"]) -> None:
        """Refuse layers of a model that cannot be run, before any data is read.

        Args:
            module: the model, on the meta device; its paths are the names of tensors.
            codecs: of each quantized layer, by path.

        Raises:
            QdcError: names the layers.
        """

    @abstractmethod
    def fill(self, module: nn.Module, weights: "Weights") -> None:
        """Give the model its tensors; modules inside it may be replaced.

        Nothing may stay on the meta device. Raises ``InvalidArtifact`` for damaged data.
        """


class Backend(Configured, ABC):
    """An emitter. It shares the form of passes: options are fields, ``str`` rebuilds it."""

    requires: ClassVar[Kinds] = (Packed,)
    """Annotations that every quantized layer must carry."""
    activations: ClassVar[Kinds] = (OfActivations,)
    """What linears do with what they read that it can say, or does: rotations, codes."""
    single_file: ClassVar["SingleFile | None"] = None
    """The one file that takes the place of OUT, if it is not the folder."""

    def check(self, codecs: Mapping[str, "Codec"]) -> None:
        """Refuse layers that it cannot run, from their codecs by path. Raises ``QdcError``.

        A backend that only writes takes every codec, as it is.
        """

    def check_model(self, checkpoint: "Checkpoint", registry: "Registry") -> None:
        """Refuse a model that it cannot write, before anything runs. Raises ``QdcError``."""

    def runtime(self, device: torch.device, dtype: torch.dtype | None) -> Runtime:
        """How it runs what it wrote, and what every other backend of the format wrote.

        Args:
            device: where the model will be; it is there.
            dtype: of activations; the backend's own choice if None.

        Raises:
            QdcError: this machine, device or dtype cannot; or, as it is, the backend only writes.
        """
        raise QdcError(
            f"the backend {self.name} writes artifacts and does not run them",
            help="load with the backend reference",
        )

    def resident(self, running: Running) -> Resident | None:
        """What its runtime holds of a model on a CPU, for ``qdc plan``; stated by the runtime.

        None, as it is, where it does not run on a CPU or does not say.
        """
        return None

    def layout(self, graph: LayerGraph) -> Mapping[str, tuple[str, ...]] | None:
        """For each safetensors file the nodes whose tensors it holds, for ``qdc plan``.

        None, as it is, where the backend does not say.
        """
        return None

    def beside(self, foreseen: Foreseen) -> Sequence[FileSize] | None:
        """Files that it writes besides those of ``layout``, for ``qdc plan``.

        Index, card and digests are no part of them; whoever compiles writes those.
        None, as it is, where the backend does not say.

        Args:
            foreseen: the compiled model; what cannot be counted is noted in its ``unread``.
        """
        return None

    @abstractmethod
    def emit_region(self, emission: "Emission", region: Region) -> None:
        """Write one finished region; its tensors are released afterwards."""

    @abstractmethod
    def finish(self, emission: "Emission") -> None:
        """Write what lies outside the regions, the configuration and the final dump."""
