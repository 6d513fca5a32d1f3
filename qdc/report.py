"""What a compile did, as data: the summary table, ``--json`` and tests read this."""

import re
from collections.abc import Iterable
from fractions import Fraction

from qdc.codec import Lowered
from qdc.frontend.coverage import Covered
from qdc.ir.annotations import Orders, Packed
from qdc.ir.graph import LayerGraph
from qdc.ir.types import Frozen


class LayerReport(Frozen):
    """One quantized layer."""

    name: str
    kind: str
    """The name without its number: layers of one kind play the same part in every region."""
    rows: int
    columns: int
    codec: str
    orders: tuple[int, ...] = ()
    payload_bits: int
    nbytes: int
    error: float | None
    """Relative output error on the calibration states."""

    @property
    def weights(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns


class PassReport(Frozen):
    """Cost of one pass over all its units."""

    name: str
    seconds: float
    peak_bytes: int
    units: int


class CompileReport(Frozen):
    """The result of ``qdc.compile``."""

    out: str | None
    """Folder of the artifact; None if the pipeline stopped before one."""
    family: str
    pipeline: str
    backend: str
    device: str
    calibration: str | None
    """Name and digest of the text."""
    plugins: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    coverage: tuple[Covered, ...]
    passes: tuple[PassReport, ...]
    remarks: tuple[str, ...]
    bytes_before: int
    """All tensor files of the checkpoint."""
    bytes_after: int
    """All files of the artifact."""
    tensor_bytes: int
    """Tensor data of the artifact, as predicted and written."""
    layer_forwards: float
    """Linears executed for calibration, divided by samples times quantized linears."""
    seconds: float
    dumps: tuple[str, ...] = ()

    @property
    def sign_bits(self) -> Fraction:
        """Sign (or code) bits a quantized weight, exact."""
        weights = sum(layer.weights for layer in self.layers)
        return Fraction(sum(layer.payload_bits for layer in self.layers), max(1, weights))

    @property
    def effective_bits(self) -> float:
        """Every stored bit a quantized weight."""
        weights = sum(layer.weights for layer in self.layers)
        return 8 * sum(layer.nbytes for layer in self.layers) / max(1, weights)

    def error_by_kind(self) -> dict[str, float]:
        """Mean relative output error of the layers of each kind, where it was measured."""
        found: dict[str, list[float]] = {}
        for layer in self.layers:
            if layer.error is not None:
                found.setdefault(layer.kind, []).append(layer.error)
        return {kind: sum(errors) / len(errors) for kind, errors in found.items()}

    def as_data(self) -> dict[str, object]:
        """Everything, with the derived figures, ready for JSON."""
        bits = self.sign_bits
        return {
            "sign_bits": {"exact": str(bits), "value": float(bits)},
            "effective_bits": self.effective_bits,
            "error_by_kind": self.error_by_kind(),
            **self.model_dump(mode="json"),
        }


def layer_reports(graph: LayerGraph) -> Iterable[LayerReport]:
    """Read the figures of every packed layer off the graph."""
    for node in graph.layers():
        lowered, packed = graph.get(node.name, Lowered), graph.get(node.name, Packed)
        if lowered is None or packed is None:
            continue
        orders = graph.get(node.name, Orders)
        yield LayerReport(
            name=node.name,
            kind=re.sub(r"\.\d+\.", ".*.", f".{node.name}").strip("."),
            rows=node.rows,
            columns=node.columns,
            codec=lowered.codec.name,
            orders=orders.blocks if orders is not None else (),
            payload_bits=packed.payload_bits,
            nbytes=packed.nbytes,
            error=lowered.error,
        )
