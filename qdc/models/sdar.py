"""SDAR and TraDo: the Qwen3 layout, a position sees its block and the blocks before it.

Source: shared facts on the ecosystem (A.1, A.4). The mask token stands in the tokenizer, not in the
published ``config.json``.
"""

from qdc.models.family import COMPILES, Family, equals, replays
from qdc.models.sizes import Fields

MASK = 151669
DEFAULTS = {"head_width": 128, "head_norms": True, "block": 4}
"""Of SDAR and of its mixture."""

SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    fields=Fields(block="block_size"),
    defaults=DEFAULTS,
    variants={"attention_bias": (False,)},
    mask_token_id=MASK,
    published_without="generate.py of JetAstra/SDAR",
    model_type="sdar",
    published=("SDAR 1.7B, 4B, 8B Chat", "TraDo 4B, 8B"),
    proved=(equals("Qwen3ForCausalLM with a block mask"), replays("sdar"), COMPILES),
)
