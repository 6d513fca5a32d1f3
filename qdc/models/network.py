"""What every model that is built here says of its inputs and of the tensors of its checkpoints."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from qdc.ir.parts import Part


class Network(nn.Module):
    """A model under published key names: ``forward(input_ids, attention_mask=None)``."""

    logits_shift: int = 0
    """1 if position i of the logits predicts token i + 1."""
    left_out: ClassVar[Mapping[str, str]] = {}
    """How names of tensors begin that a checkpoint may hold and that are not read, and why."""

    @property
    def fused(self) -> Mapping[str, Part]:
        """Tensors of the module that checkpoints hold otherwise, by name.

        They are rows of another one, one of a stack, or whole under another name.
        """
        return {}

    def alias(self, key: str) -> str:
        """The name under which a tensor is published that checkpoints may hold twice."""
        return key

    def further_inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """What its forward takes beside tokens and mask, on meta, for whoever traces it."""
        return ()


def fused_of(module: nn.Module) -> Mapping[str, Part]:
    """``Network.fused``; nothing of other modules."""
    return module.fused if isinstance(module, Network) else {}
