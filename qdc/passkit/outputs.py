"""How errors of a layer's outputs count for lowerings: alike, or by the curvature of the loss.

Source: YAQA (arXiv 2505.22988).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import NotPositiveDefinite
from qdc.ir.activations import RotatedHeads
from qdc.ir.curvature import OutputCurvature
from qdc.ir.graph import Node
from qdc.numerics.factor import FactorizationFailed, factor_bytes, factorize
from qdc.numerics.hadamard import RandomHadamard, random_seed
from qdc.pipeline.passbase import Kinds
from qdc.streaming.unit import Unit
from qdc.streaming.work import FP32, Work

Outputs = Annotated[
    Literal["alike", "guided"],
    Field(description="how errors of different outputs count: alike, or guided"),
]
OutputDamp = Annotated[
    float,
    Field(gt=0, le=10, description="share of the mean curvature added to that of each output"),
]
DAMP = 0.1
ATTEMPTS = 3
FLAT = 1e-6
"""Share of the mean curvature that an output has on which no prediction hangs, before damping."""
EXACT = 8
"""Bytes of an fp64 number."""


def curvature_needs(outputs: Outputs) -> Kinds:
    """What a pass reads of guide."""
    return (OutputCurvature,) if outputs == "guided" else ()


def output_factor(unit: Unit, node: Node, seed: int, damp: float) -> Tensor:
    """The factor of a layer's curvature in coordinates that a rotation of its outputs has mixed.

    Args:
        unit: of the layer, which carries its curvature.
        node: the layer.
        seed: of ``passkit.rotation.rotated``.
        damp: share of the mean curvature that is added to the diagonal.

    Returns:
        f32[rows, rows], V with the curvature inv(V^T V).

    Raises:
        NotPositiveDefinite: the curvature holds numbers that are not finite.
    """
    turn = RandomHadamard.of(node.rows, random_seed(seed, "outputs", node.name), unit.device)
    return _factor(unit, node, damp, turn)


def own_output_factor(unit: Unit, node: Node, damp: float) -> Tensor:
    """The factor of a layer's curvature in the coordinates of the rows of its weight.

    Guide looks at the original's outputs, wherever it stands; ``rotate`` may have turned the rows
    of a value projection since, head by head.

    Args:
        unit: of the layer, which carries its curvature.
        node: the layer.
        damp: share of the mean curvature that is added to the diagonal.

    Returns:
        f32[rows, rows], V with the curvature inv(V^T V).

    Raises:
        NotPositiveDefinite: the curvature holds numbers that are not finite.
    """
    heads = unit.graph.get(node.name, RotatedHeads)
    turn = None if heads is None else heads.of(node.rows, unit.device)
    return _factor(unit, node, damp, turn)


def _factor(unit: Unit, node: Node, damp: float, turn: RandomHadamard | None) -> Tensor:
    """The factor of a layer's curvature, whose outputs ``turn`` has mixed."""
    found = unit.get(unit.graph.require(node.name, OutputCurvature).tensor)
    if turn is not None:
        half = turn.forward(found.to(torch.float64))
        found = turn.forward(half.T.contiguous())
    return damped_factor(node, found, damp)


def damped_factor(node: Node, found: Tensor, damp: float) -> Tensor:
    """The factor of a curvature of a node, f32 or f64[n, n]; its mean by ``damp`` is added.

    Raises ``NotPositiveDefinite`` for numbers that are not finite.
    """
    flat, mean = found.diagonal() == 0, found.diagonal().mean()
    if mean > 0 and bool(flat.any()):
        # Factorize takes what is 0 for unknown and gives it the mean; here nothing hangs on it.
        found = found + torch.diag(flat * mean * FLAT)
    try:
        return factorize(found, damp, ATTEMPTS).upper
    except FactorizationFailed as error:
        raise NotPositiveDefinite(
            f"the curvature is not positive definite: {error}",
            where=[f"%{node.name}"],
            help="lower with outputs=alike and rounding=nearest, or calibrate on more tokens",
        ) from error


def output_factor_effort(node: Node) -> tuple[int, Work]:
    """Bytes and arithmetic of ``output_factor``: the curvature turned in fp64, its factor."""
    squares = node.rows**2
    return FP32 * squares + 2 * EXACT * squares + factor_bytes(node.rows), Work(
        exact=4 * node.rows * squares / 3, elements=4 * squares
    )
