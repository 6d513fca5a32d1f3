"""Fast-dLLM v2: the Qwen2.5 layout, block-causal, logits shifted by one; the 1.5B model is tied.

Source: shared facts on the ecosystem (A.1, A.4).
"""

from qdc.models.family import COMPILES, QWEN_INERT, Family, equals, replays
from qdc.models.sizes import Fields

FAST_DLLM = Family(
    name="fast-dllm",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    fields=Fields(block="bd_size"),
    defaults={"block": 32},
    inert=(*QWEN_INERT, "conplemenrary_mask"),
    biases=("query", "key", "value"),
    logits_shift=1,
    mask_token_id=151665,
    model_type="Fast_dLLM_Qwen",
    published=("Fast-dLLM v2 1.5B (tied), 7B",),
    proved=(equals("Qwen2ForCausalLM with a block mask"), replays("fast-dllm"), COMPILES),
)
