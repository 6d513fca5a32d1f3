"""Whether every attention of an exported graph sees to the sides that its model is said to see.

A masked-denoising model fills a gap from what stands before and behind it. A decoder class that
ignores ``is_causal = False`` would compile to something else without a word, and so would a model
that is judged by its next token and sees it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from qdc.errors import UnsupportedModel
from qdc.frontend.calls import ATTENTION_CALL, NodeCalls
from qdc.ir.graph import LayerGraph

LENGTH = 12
"""Tokens of the input whose masks are looked at."""
MASK, CAUSAL = 3, 5
"""Places of the arguments of attention."""


def check_direction(graph: LayerGraph, nodes: Mapping[str, fx.Node | NodeCalls]) -> None:
    """Refuse attention to one side, or, in a causal model, to both.

    Masks are computed for one short input, unless they depend on parameters.

    Raises:
        UnsupportedModel: an attention sees to other sides, or the model has none that is known.
    """
    attentions, causal = find_attentions(graph, nodes)
    if not attentions:
        raise UnsupportedModel(
            "the model calls no scaled_dot_product_attention: qdc cannot tell in which direction "
            "it reads"
        )
    if graph.model.causal:
        both = [name for name in attentions if name not in causal]
        if both:
            raise UnsupportedModel(
                "the model has no mask token, and its attention reads to both sides: it predicts "
                "neither masked tokens nor the next one",
                where=[f"%{name}" for name in both],
                help="if it fills masked places, write the id of its mask token to config.json as "
                "mask_token_id",
            )
    elif causal:
        raise UnsupportedModel(
            "attention reads to one side only",
            where=[f"%{name}" for name in causal],
            help="the model's class does not follow is_causal = false",
        )


def find_attentions(
    graph: LayerGraph, nodes: Mapping[str, fx.Node | NodeCalls]
) -> tuple[list[str], list[str]]:
    """Names of the nodes that hold an attention, and of those that look to one side only."""
    calls = {name: node for name, node in nodes.items() if isinstance(node, NodeCalls)}
    attentions = [
        (name, call)
        for name, found in calls.items()
        for call in found.calls
        if call.target is ATTENTION_CALL
    ]
    causal = [name for name, call in attentions if _argument(call, CAUSAL, "is_causal")]
    masks: dict[str, bool] = {}
    for name, call in attentions:
        mask = _argument(call, MASK, "attn_mask")
        value = calls[name].inputs.get(mask) if isinstance(mask, fx.Node) else None
        if value is not None and value not in masks:
            masks[value] = _hides_one_side(graph, calls, value)
        if value is not None and masks[value]:
            causal.append(name)
    return [name for name, _ in attentions], list(dict.fromkeys(causal))


def _argument(call: fx.Node, place: int, name: str) -> object:
    return call.args[place] if len(call.args) > place else call.kwargs.get(name)


def _hides_one_side(graph: LayerGraph, calls: Mapping[str, NodeCalls], name: str) -> bool:
    """Whether a mask hides a place from another and not the other from it."""
    needed, pending = set[str](), [name]
    while pending:
        step = pending.pop()
        if step not in needed:
            needed.add(step)
            pending.extend(graph[step].inputs)
    if any(graph[step].parameters for step in needed):
        return False
    environment: dict[str, Tensor] = {}
    for node in graph:
        if node.name not in needed:
            continue
        if node.op == "input":
            environment[node.name] = torch.ones(1, LENGTH, dtype=torch.int64)
        else:
            environment[node.name] = calls[node.name].run(
                environment, {}, (1, LENGTH), torch.device("cpu")
            )
    mask = environment[name]
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    visible = visible.expand(*visible.shape[:-2], LENGTH, LENGTH)
    return bool((visible != visible.transpose(-1, -2)).any())
