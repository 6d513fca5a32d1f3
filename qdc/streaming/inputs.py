"""What linears make of values that they read and give, as passes have annotated it until now."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from qdc.format.tokenquantizer import TokenQuantizer
from qdc.ir.activations import InputCodes, OutputCodes, RotatedHeads, Rotation
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Kept
from qdc.ir.graph import LayerGraph, Node, Stage
from qdc.ir.tensors import TensorTable

A = TypeVar("A", bound=Annotation)


@dataclass(frozen=True)
class LayerInputs:
    """Rotations and quantizers of the layers of a graph; none is held, for annotations change."""

    graph: LayerGraph
    tensors: TensorTable
    device: torch.device

    def weight(self, node: Node, weight: Tensor) -> Tensor:
        """The original weight, f32[rows, columns], in the coordinates of inputs and outputs."""
        heads = self._note(node.name, RotatedHeads)
        if heads is not None:
            weight = heads.of(node.rows, self.device).forward(weight.T).T.contiguous()
        return self.rotate(node.name, weight)

    def rotate(self, name: str, value: Tensor) -> Tensor:
        """The original model's value [..., columns] that a layer reads, in its coordinates."""
        found = self._note(name, Rotation)
        if found is None:
            return value
        return found.of(self.graph[name].columns, self.device).forward(value)

    def notes(self, name: str) -> tuple[Annotation | None, ...]:
        """What says how a linear reads: where two have the same, they read a value alike."""
        return self._note(name, Rotation), self._note(name, InputCodes)

    def read(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor:
        """What a linear multiplies in the place of the value that it reads.

        Args:
            name: of the linear.
            value: [..., columns].
            masked: bool[...], which tokens are masked; None where that is not known.
        """
        rotation, codes = self._note(name, Rotation), self._note(name, InputCodes)
        comes_rotated = rotation is not None and rotation.head is not None
        rotated = value if comes_rotated else self.rotate(name, value)
        if codes is None:
            return rotated
        pairs = zip(codes.suffixes, codes.tensors, strict=True)
        stored = {suffix: self.tensors.get(ref) for suffix, ref in pairs}
        return TokenQuantizer.of(codes.form, stored, self.device).round(rotated, masked)

    def give(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor:
        """What others read in the place of the value [..., rows] that a linear gives."""
        codes = self._note(name, OutputCodes)
        return value if codes is None else TokenQuantizer(codes.form).round(value, masked)

    def reader(self, stage: Stage) -> str:
        """The layer that stands for a stage: all that are to be quantized read the same."""
        return next((node.name for node in self.graph.layers([stage])), stage.layers[0])

    def _note(self, name: str, kind: type[A]) -> A | None:
        return None if self.graph.get(name, Kept) is not None else self.graph.get(name, kind)
