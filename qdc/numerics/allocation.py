"""Adaptive Blockwise Mixed Precision (ABMP): which blocks get one component more or less."""

from collections.abc import Sequence

from qdc.numerics.orders import HIGHEST_ORDER, LOWEST_ORDER

# A share such as 0.1 of 30 blocks is 3, although its float product may lie just below.
_SHARE_EPSILON = 1e-9


def abmp_orders(
    scores: Sequence[float], widths: Sequence[int], ratio: float, base: int = 2
) -> tuple[int, ...]:
    """Move one order from the least to the most salient blocks of one layer (quant-dllm.md 3).

    k = min(floor(ratio * full), floor(full / 2)) blocks go down and k go up, counted over the
    ``full`` blocks of full width. A narrower last block keeps the base, so that the mean order
    over the weights is exactly ``base``. Of equal scores the lower index goes down first and the
    higher index goes up first.

    Args:
        scores: Salience of each block.
        widths: Columns of each block.
        ratio: Share of the blocks moved each way, 0 to 0.5.
        base: Mean order of the layer.

    Returns:
        The order of each block.

    Raises:
        ValueError: If the ratio or an order is out of range, the lengths differ or are zero, or a
            score is NaN.
    """
    if not 0 <= ratio <= 0.5:
        raise ValueError(f"ratio must lie in 0..0.5, but is {ratio}")
    if len(scores) != len(widths) or not scores:
        raise ValueError(f"{len(scores)} scores do not match {len(widths)} block widths")
    if any(score != score for score in scores):
        raise ValueError("a score is NaN")
    widest = max(widths)
    full = [index for index, width in enumerate(widths) if width == widest]
    moved = min(int(ratio * len(full) + _SHARE_EPSILON), len(full) // 2)
    lowest, highest = (base - 1, base + 1) if moved else (base, base)
    if lowest < LOWEST_ORDER or highest > HIGHEST_ORDER:
        raise ValueError(
            f"base {base} with ratio {ratio} needs orders {lowest}..{highest}, "
            f"outside {LOWEST_ORDER}..{HIGHEST_ORDER}"
        )
    ranked = sorted(full, key=lambda index: scores[index])
    orders = [base] * len(scores)
    for index in ranked[:moved]:
        orders[index] = lowest
    for index in ranked[len(ranked) - moved :]:
        orders[index] = highest
    return tuple(orders)
