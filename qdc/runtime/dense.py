"""The reference runtime: every quantized layer is decoded to a dense weight."""

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from qdc.format.codec import Codec
from qdc.format.weights import Weights
from qdc.pipeline.backendbase import Runtime
from qdc.pipeline.running import Resident, Running
from qdc.runtime.integers import integer_bytes, put_integers
from qdc.runtime.weights import dense_tensors, moved, place, tied_names

FP32 = 4
DECODING = 2
"""Dense fp32 weights that decoding one takes at a time: the result, and a product on its way."""


def resident(running: Running) -> Resident:
    """What the runtime holds on a CPU, in fp32: weights, of which one at a time is decoded."""
    weights = loading = 0
    for layer in running.layers:
        if layer.codec is not None and layer.integer:
            dense = integer_bytes(layer.codec)
            # Two bytes a code while they are moved to the middle, beside the unpacked ones.
            passing = 4 * dense + layer.codec.nbytes
        elif layer.codec is not None:
            dense = FP32 * layer.codec.rows * layer.codec.columns
            passing = DECODING * dense + layer.codec.working_bytes + layer.codec.nbytes
        else:
            assert layer.plain is not None, "a layer has a codec, or is stored plainly"
            dense = passing = FP32 * layer.plain.elements({})
        if layer.codec is not None and layer.rotated:
            dense += FP32 * layer.codec.columns
        loading = max(loading, weights + passing)
        weights += dense
    return Resident({"dense weights": weights, "activations": running.values}, loading)


class DenseRuntime(Runtime):
    """Runs every codec on every device: plain linears and embeddings, with the decoded weights."""

    follows_activations: ClassVar[bool] = True

    def check(self, module: nn.Module, codecs: Mapping[str, Codec]) -> None:
        """Nothing is refused: every codec has a dense form."""

    def fill(self, module: nn.Module, weights: Weights) -> None:
        """Decode tensor by tensor; beside the model there is one dense fp32 weight at a time."""
        names, tied = dense_tensors(module), tied_names(module)
        replaced = put_integers(module, weights, self.device, self.dtype)
        read = weights.unrotated if self.rotates else weights.dense
        state = {
            name: moved(read(name), self.device, self.dtype)
            for name in names
            if name.rpartition(".")[0] not in replaced
        }
        place(module, state, tied, replaced)


class UnrotatedRuntime(DenseRuntime):
    """The same, with the rotations of inputs multiplied out: nothing is in front of a linear."""

    rotates: ClassVar[bool] = True
