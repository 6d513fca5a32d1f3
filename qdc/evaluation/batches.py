"""How many windows a forward takes, so that logits of a large vocabulary fit into memory."""

LOGITS_LIMIT = 1 << 28
"""Bytes of one model's logits in float32. Comparing two models holds about four times as many."""


def fitting_batch(batch: int, length: int, vocabulary: int) -> int:
    """``batch`` windows of ``length`` tokens, or as many as fit; at least one.

    What is measured of a window is the same in every batch, up to the rounding of its products.
    """
    return max(1, min(batch, LOGITS_LIMIT // (4 * length * vocabulary)))
