"""A stream through the original model: its weights are read from the checkpoint when needed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.frontend.tracer import Program
from qdc.streaming.parameters import NodeWeights
from qdc.streaming.states import StateStore
from qdc.streaming.stream import Stream


def original_weights(program: Program, checkpoint: Checkpoint, device: torch.device) -> NodeWeights:
    """Give the checkpoint's own tensors in fp32; none is kept, so that nothing piles up."""

    def weights(name: str) -> dict[str, Tensor]:
        return {
            parameter.role: checkpoint.tensor(parameter.name).to(device, torch.float32)
            for parameter in program.graph[name].parameters
        }

    return weights


def original_stream(
    program: Program,
    checkpoint: Checkpoint,
    batches: Sequence[Tensor],
    device: torch.device,
    *,
    states: StateStore | None = None,
) -> Stream:
    """Start batches ``i64[b, length]`` before the first region of the original model."""
    weights = original_weights(program, checkpoint, device)
    return Stream(program, batches, weights, device, states=states)
