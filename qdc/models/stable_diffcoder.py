"""Stable-DiffCoder: the Llama layout, a position sees its block of 4 and the blocks before it.

Its published class derives from transformers' own Llama and adds a sampler, which brings the block
and the mask token; ``config.json`` has neither, so ``block_size`` and ``mask_token_id`` may stand
there. Its ``model_type`` is Llama's, which transformers reads looking back only. Source: shared
facts on engines; the published file, as in ``tests/fixtures/published/stable-diffcoder``.
"""

from qdc.models.family import COMPILES, Family, equals, replays
from qdc.models.sizes import Fields

STABLE_DIFFCODER = Family(
    name="stable-diffcoder",
    architectures=("StableDiffcoderForCausalLM",),
    fields=Fields(block="block_size"),
    defaults={"block": 4, "max_length": 2048},
    variants={"attention_bias": (False,), "mlp_bias": (False,)},
    inert=("pretraining_tp",),
    mask_token_id=5,
    decoding={"strategy": "threshold", "threshold": 0.95},
    published=("Stable-DiffCoder 8B Base, Instruct",),
    proved=(equals("LlamaForCausalLM with a block mask"), replays("stable-diffcoder"), COMPILES),
)
