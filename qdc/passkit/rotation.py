"""A layer in coordinates that random rotations of both sides have mixed.

Source: related-systems.md 14 (QuIP#, arXiv 2402.04396). The factor is rotated, nothing is collected
again; layers that read one value share the rotation of their inputs, so that an engine can apply it
once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.ir.graph import Node
from qdc.numerics.asymmetry import asymmetry_term
from qdc.numerics.hadamard import RandomHadamard, random_seed
from qdc.numerics.rotated import InputSpace
from qdc.passkit.block_lowering import CompensatedLowering, Problem
from qdc.streaming.unit import Unit


class Rotated(NamedTuple):
    """What a rotated layer is to solve.

    Attributes:
        problem: in rotated coordinates, columns filled up.
        term: f32[columns, columns], ``quantize_blocks``' asymmetry; None where none is asked for.
        seeds: of the rotations of inputs and outputs, i32[2] as stored.
    """

    problem: Problem
    term: Tensor | None
    seeds: Tensor


def rotated(
    step: CompensatedLowering,
    unit: Unit,
    node: Node,
    problem: Problem,
    *,
    seed: int,
    multiple: int = 1,
    reverse: bool = True,
    rescale: Tensor | None = None,
) -> Rotated:
    """Rotate a layer.

    Args:
        step: the pass, whose drift is taken back as its options say.
        unit: of the layer.
        node: the layer.
        problem: what it is to solve, as it is.
        seed: which rotations are drawn.
        multiple: columns are filled up to a multiple of this.
        reverse: count columns from the last one.
        rescale: f32[columns], by which columns are multiplied before.
    """
    ends = ("inputs", node.inputs[0]), ("outputs", node.name)
    seeds = [random_seed(seed, end, of) for end, of in ends]
    device = problem.weight.device
    space = InputSpace(
        RandomHadamard.of(node.columns, seeds[0], device),
        rescale,
        padding=-node.columns % multiple,
        reverse=reverse,
    )
    outputs = RandomHadamard.of(node.rows, seeds[1], device)
    weight = outputs.forward(space.weight(problem.weight).T).T.contiguous()
    found = Problem(weight, space.factor(problem.upper))
    cross, term = step.cross(unit, node), None
    if cross is not None:
        term = asymmetry_term(space.cross(cross), found.upper, step.asymmetry)
    return Rotated(found, term, torch.tensor(seeds, dtype=torch.int32))


def rotation_bytes(columns: int) -> int:
    """Bytes that rotating the factor in fp64 takes for a moment."""
    return 8 * 5 * columns**2
