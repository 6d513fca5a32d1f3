"""SDAR and TraDo: the Qwen3 layout, a position sees its block and the blocks before it.

Source: shared facts on the ecosystem (A.1, A.4). The mask token stands in the tokenizer, not in the
published ``config.json``.
"""

from qdc.models.family import COMPILES, QWEN_INERT, Family, equals, replays
from qdc.models.sizes import Fields

MASK = 151669
DEFAULTS = {"head_norms": True, "block": 4}
"""Of SDAR and of its mixture."""
INERT = (
    *QWEN_INERT,
    "debug",
    "ep_size",
    "fuse_cross_entropy",
    "micro_forward",
    "skip_checkpoint",
    "use_deepep",
)
"""Of both too: how they are trained."""

SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    fields=Fields(block="block_size"),
    defaults={**DEFAULTS, "head_width": 128},
    variants={"attention_bias": (False,)},
    inert=INERT,
    mask_token_id=MASK,
    published_without="generate.py of JetAstra/SDAR",
    model_type="sdar",
    published=("SDAR 1.7B, 4B, 8B Chat", "TraDo 4B, 8B"),
    proved=(equals("Qwen3ForCausalLM with a block mask"), replays("sdar"), COMPILES),
)
