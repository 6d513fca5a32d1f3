"""The calls of an exported graph that stand behind one node of the layer graph.

An exported graph is finer than a layer graph: it computes with sizes, reads buffers, takes tuples
apart and asserts. ``NodeCalls`` holds those that lead to one tensor, and runs them on real tensors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from qdc.errors import UnsupportedModel

Sizes = tuple[int, int]
"""Batch and length of the input."""
LINEAR_CALL = torch.ops.aten.linear.default
ATTENTION_CALL = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True, eq=False)
class NodeCalls:
    """Runs one node of the layer graph."""

    calls: tuple[fx.Node, ...]
    """In order; the last one gives the value."""
    inputs: Mapping[fx.Node, str]
    """Where a call reads another node of the layer graph: its name."""
    roles: Mapping[fx.Node, str]
    """Where a call reads a parameter: its role."""
    constants: Mapping[fx.Node, Tensor]
    """Where a call reads a buffer: its value, small, on the CPU."""
    sizes: Mapping[fx.Node, Callable[[Sizes], int]]
    """Where a call reads a size: how it follows from batch and length."""
    same: Mapping[fx.Node, fx.Node]
    """Where a call reads another one of the same node."""
    _moved: dict[tuple[fx.Node, torch.device], Tensor] = field(default_factory=dict)

    @property
    def attends(self) -> bool:
        """Whether attention is among the calls."""
        return any(call.target is ATTENTION_CALL for call in self.calls)

    @property
    def is_linear(self) -> bool:
        """Whether it is one linear with a weight of its own."""
        return len(self.calls) == 1 and self.calls[0].target is LINEAR_CALL

    def written(self) -> Iterator[bytes]:
        """All that the calls compute with, but for parameters: equal calls give equal bytes.

        A graph shows operations and shapes alone; the epsilon of a norm, the scale of an attention
        and the values of buffers stand here.
        """
        for call in self.calls:
            yield f"{call.name} {call.target} {call.args} {call.kwargs}".encode()
        for node, value in self.constants.items():
            yield f"{node.name} {value.dtype} {list(value.shape)}".encode()
            yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def run(
        self,
        environment: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        sizes: Sizes,
        device: torch.device,
        same: Tensor | None = None,
    ) -> Tensor:
        """Compute the value.

        Args:
            environment: values of the layer graph by name, on the device.
            parameters: of this node, by role; a linear may have been given a bias.
            sizes: of the input.
            device: where the graph's own tensors (positions, masks) are made.
            same: ``bool[batch, 1, length, length]``: the only pairs of positions that attention may
                join, of those that the model's own mask joins; None if that alone decides.

        Raises:
            UnsupportedModel: attention is over something else than the positions of the input.
        """
        if self.is_linear:
            (read,) = self.inputs.values()
            return functional.linear(
                environment[read], parameters["weight"], parameters.get("bias")
            )
        found: dict[fx.Node, Any] = {}

        def value(argument: fx.Node) -> Any:
            if argument in self.same:
                return found[self.same[argument]]
            if argument in self.inputs:
                return environment[self.inputs[argument]]
            if argument in self.roles:
                return parameters[self.roles[argument]]
            if argument in self.sizes:
                return self.sizes[argument](sizes)
            return self._constant(argument, device)

        for call in self.calls:
            arguments, keywords = _on(device, fx.map_arg((call.args, call.kwargs), value))
            if call.target is ATTENTION_CALL:
                arguments, keywords = _without_idle_mask(arguments, keywords)
                if same is not None:
                    arguments, keywords = _narrowed(arguments, keywords, same)
            found[call] = call.target(*arguments, **keywords)  # type: ignore[operator]
        result: Tensor = found[self.calls[-1]]
        return result

    def _constant(self, node: fx.Node, device: torch.device) -> Tensor:
        if (node, device) not in self._moved:
            self._moved[node, device] = self.constants[node].to(device)
        return self._moved[node, device]


def _on(device: torch.device, value: Any) -> Any:
    """Arguments with every device, that of the export, replaced by this one."""
    if isinstance(value, torch.device):
        return device
    if isinstance(value, tuple | list):
        return type(value)(_on(device, item) for item in value)
    if isinstance(value, dict):
        return {key: _on(device, item) for key, item in value.items()}
    return value


def _without_idle_mask(
    arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Drop a mask that hides nothing: without one, attention takes its fast path.

    An export cannot branch on what a mask holds, so every exported attention has one.
    """
    mask = arguments[3] if len(arguments) > 3 else keywords.get("attn_mask")
    if mask is None or mask.dtype != torch.bool:
        return arguments, keywords
    seen = mask[tuple(slice(0, 1 if step == 0 else None) for step in mask.stride())]
    if not bool(seen.all()):
        return arguments, keywords
    if len(arguments) > 3:
        return (*arguments[:3], None, *arguments[4:]), keywords
    return arguments, {**keywords, "attn_mask": None}


def _narrowed(
    arguments: tuple[Any, ...], keywords: dict[str, Any], same: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let attention join only pairs that ``same`` joins, and that its own mask joins."""
    query, key = (arguments[place] for place in (0, 1))
    batch, length = same.shape[0], same.shape[-1]
    if any(part.dim() != 4 or part.shape[::2] != (batch, length) for part in (query, key)):
        raise UnsupportedModel(
            "an attention of the model is not over the positions of the input: its queries are "
            f"{list(query.shape)}, its keys {list(key.shape)}"
        )
    mask = arguments[3] if len(arguments) > 3 else keywords.get("attn_mask")
    if _is_causal(arguments, keywords):  # beside a mask not every kernel takes the flag
        same = same & same.new_ones(length, length).tril()
        arguments = (*arguments[:5], False, *arguments[6:]) if len(arguments) > 5 else arguments
        keywords = {**keywords, "is_causal": False} if "is_causal" in keywords else keywords
    if mask is None:
        mask = same
    elif mask.dtype == torch.bool:
        mask = mask & same
    else:
        mask = torch.where(same, mask, -torch.inf)
    if len(arguments) > 3:
        return (*arguments[:3], mask, *arguments[4:]), keywords
    return arguments, {**keywords, "attn_mask": mask}


def _is_causal(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    return bool(arguments[5] if len(arguments) > 5 else keywords.get("is_causal", False))
