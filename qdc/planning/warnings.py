"""What a plan should make the user think about before hours are spent."""

from collections.abc import Iterator

from qdc.ir.annotations import Moment, Orders
from qdc.streaming.account import Account


def shape_warnings(account: Account, tokens: int) -> Iterator[str]:
    """Blocks that are ragged, and layers with more inputs than tokens to calibrate them."""
    ragged, starved, pooled = set[int](), set[int](), dict[str, int]()
    layers = list(account.program.graph.layers())
    for node in layers:
        orders = account.program.graph.get(node.name, Orders)
        if orders is not None and orders.widths[-1] != orders.widths[0]:
            ragged.add(node.columns)
        moment = account.program.graph.get(node.name, Moment)
        if moment is not None and tokens < node.columns:
            starved.add(node.columns)
        elif moment is not None and moment.tokens < min(tokens, node.columns):
            pooled[node.name] = moment.tokens
    if ragged:
        count = sum(1 for node in layers if node.columns in ragged)
        widths = ", ".join(f"{columns:,}" for columns in sorted(ragged))
        yield (
            f"{count} layers end in a ragged block, which is padded and never moves to another "
            f"order: their {widths} inputs are no multiple of the block"
        )
    if starved:
        yield (
            f"the widest layer has {max(starved):,} inputs, and {tokens:,} tokens calibrate it: "
            "its second moment cannot have full rank; raise --samples or --length"
        )
    if pooled:
        yield (
            f"an expert gets about {max(pooled.values()):,} tokens, fewer than the inputs of "
            f"{len(pooled)} layers of experts, which then are calibrated on all tokens; "
            "raise --samples or --length"
        )
