"""The reference runtime: every quantized layer is decoded to a dense weight."""

from collections.abc import Mapping

from torch import nn

from qdc.format.codec import Codec
from qdc.format.weights import Weights
from qdc.pipeline.backendbase import Runtime
from qdc.runtime.weights import dense_tensors, moved, place, tied_names


class DenseRuntime(Runtime):
    """Runs every codec on every device: plain linears and embeddings, with the decoded weights."""

    def check(self, module: nn.Module, codecs: Mapping[str, Codec]) -> None:
        """Nothing is refused: every codec has a dense form."""

    def fill(self, module: nn.Module, weights: Weights) -> None:
        """Decode tensor by tensor; beside the model there is one dense fp32 weight at a time."""
        names = dense_tensors(module)
        state = {name: moved(weights.dense(name), self.device, self.dtype) for name in names}
        place(module, state, tied_names(module))
