"""Turn working tensors into the stored form, and prove that nothing was lost.

Whatever lowered a layer brought a codec; this pass asks it to pack, checks that the bytes are the
predicted ones and that unpacking gives the same weight bit for bit, and releases the working form.

    before   %h0.q = linear %x   w f16[64,512]
                 @daq     4 blocks   output error 1.3e-02   outliers 2.2%   15 sweeps
    after        @packed  11,265 B   2 sign bits/weight   2.75 in all
"""

from typing import ClassVar, Literal

from qdc.passkit import Forecast, Kinds, Lowered, Node, Packed, Pass, Unit, Work, file_key


class Pack(Pass):
    """Turn working tensors into the stored form, and prove that nothing was lost."""

    name: ClassVar[str] = "pack"
    requires: ClassVar[Kinds] = (Lowered,)
    provides: ClassVar[Kinds] = (Packed,)
    consumes: ClassVar[Kinds] = (Lowered,)
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False

    def run(self, unit: Unit) -> None:
        """Pack one layer after the other."""

        def pack(nodes: tuple[Node, ...]) -> None:
            for node in nodes:
                unit.annotate(node, self.pack(unit, node))

        unit.share(unit.layers(), pack)
        for node in unit.layers():
            for ref in unit.graph.require(node.name, Lowered).tensors:
                unit.tensors.release(ref.name)

    def forecast(self, unit: Forecast) -> None:
        """Working tensors make room for stored ones, one layer at a time, proved on the way."""
        for node in unit.layers():
            codec = unit.codec(node)
            if codec is not None:
                dense = 4 * node.rows * node.columns
                effort = Work(elements=8 * node.rows * node.columns)
                unit.work(codec.nbytes + codec.working_bytes + 3 * dense, effort, host=True)
            unit.pack(node)

    def pack(self, unit: Unit, node: Node) -> Packed:
        """Pack, check bytes and weight, release."""
        lowered = unit.graph.require(node.name, Lowered)
        codec = lowered.codec
        stored = codec.pack_exactly(lowered.working(unit.tensors), node.name)
        for ref in lowered.tensors:
            unit.tensors.release(ref.name)
        return Packed(
            tensors=tuple(unit.put(file_key(node.path, s), t) for s, t in stored.items()),
            suffixes=tuple(stored),
            payload_bits=codec.payload_bits,
            weights=node.rows * node.columns,
        )
