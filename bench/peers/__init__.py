"""Other people's quantizers, run from their own libraries on our model and our samples.

    .venv-peers/bin/python -m bench.peers autoround --model examples/tiny-llada --seed 0 --out DIR

A peer is a module with ``quantize(model_folder, samples, seed, **options) -> PeerResult``. It sees
exactly the masked samples of ``calibrate-mcs`` (``bench.common.samples``) and returns dense
weights under our layer names, which ``placing.with_weights`` puts into our own module, so that
every method is judged by the same forward. Nothing is quantized but the linears of the blocks.

The libraries want an environment of their own (see README.md); ``isolated.quantize`` runs a peer
there and reads back what it wrote.
"""

from .result import MissingLibrary, PeerResult

__all__ = ["PEERS", "MissingLibrary", "PeerResult"]

PEERS = {
    "autoround": "autoround",
    "gptq": "llmcompressor_peer",
    "hqq": "hqq_peer",
    "llamacpp": "llamacpp_peer",
}
"""Module of each peer by its name."""
