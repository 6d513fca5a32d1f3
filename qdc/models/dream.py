"""Dream, DiffuCoder and Dream-Coder: the Qwen2.5 layout, all positions see all.

Position i of the logits predicts token i + 1, as in the autoregressive model that they were made
from. Source: shared facts on the ecosystem (A.3).
"""

from qdc.models.family import COMPILES, QWEN_INERT, Family, equals, replays

DREAM = Family(
    name="dream",
    architectures=("DreamModel",),
    defaults={"max_length": 131072},
    variants={"use_mrope": (False,), "full_attn_mask": (True,)},
    inert=QWEN_INERT,
    biases=("query", "key", "value"),
    logits_shift=1,
    mask_token_id=151666,
    trained_length=2048,
    model_type="Dream",
    published=("Dream-v0 Base, Instruct 7B", "DiffuCoder 7B", "Dream-Coder 7B"),
    proved=(equals("Qwen2ForCausalLM with is_causal=False"), replays("dream"), COMPILES),
)
