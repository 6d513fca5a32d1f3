"""Which column groups get a bit more or less, when as many go up as down."""

from collections.abc import Sequence


def group_counts(full: int, *, release: bool = False) -> range:
    """List the numbers of groups that may move each way.

    Args:
        full: Groups of full width.
        release: From 1 to one below half, as SliM-LLM's code tries them (related-systems.md 6, 18);
            0 alone where that leaves none. Else from 0 to half.
    """
    if release:
        return range(1, full // 2) or range(1)
    return range(full // 2 + 1)


def moved_orders(ranking: Sequence[int], count: int, groups: int, base: int) -> tuple[int, ...]:
    """Give the lowest ranks one bit less than the base, the highest one more.

    Args:
        ranking: Groups that may move, from the least to the most salient.
        count: How many move each way.
        groups: Groups of the layer; those that are not ranked keep the base.
        base: Bits of all others.

    Returns:
        The bits of each group; their mean over the ranked groups is the base.

    Raises:
        ValueError: If more would move than there are.
    """
    if not 0 <= 2 * count <= len(ranking):
        raise ValueError(f"{count} of {len(ranking)} groups cannot move each way")
    orders = [base] * groups
    for low, high in zip(ranking[:count], ranking[len(ranking) - count :], strict=True):
        orders[low], orders[high] = base - 1, base + 1
    return tuple(orders)
