"""Graphs by chance: any structure, and any annotation of every kind that comes with qdc."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Factor, Kept, Moment, Orders, Packed, Salience
from qdc.ir.costs import Costs, LossSensitivity
from qdc.ir.cross import CrossMoment
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph, Node, Region, Stage, Structure
from qdc.ir.opaque import Opaque
from qdc.ir.tuned import Tuned
from qdc.ir.types import BYTES, Dimension, Parameter, TensorRef, ValueType
from qdc.numerics.blocks import block_widths
from qdc.passes.daq_lower import Daq
from qdc.passes.gptq_lower import Gptq
from qdc.passes.quantize_vocab import Vocabulary
from qdc.passes.rtn_lower import Rtn
from qdc.pipeline.registry import standard_registry

KNOWN: Mapping[str, type[Annotation]] = standard_registry().annotations()

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.text(min_size=1, max_size=20)
node_names = st.text("ab0_é.-\u200d", min_size=1, max_size=5).map(lambda name: f"n{name}")
"""Also with a letter that is joined to the next and cannot be printed."""
counts = st.integers(1, 2**63)
positive = st.floats(0, allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def references(draw: st.DrawFn, *shape: int) -> TensorRef:
    return TensorRef(
        name=draw(names),
        dtype=draw(st.sampled_from(sorted(BYTES))),
        shape=shape or draw(st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        digest=draw(digests),
    )


@st.composite
def tilings(draw: st.DrawFn, columns: int) -> tuple[int, ...]:
    """Widths of blocks that tile the columns."""
    cuts = draw(st.sets(st.integers(1, max(1, columns - 1)), max_size=5)) if columns > 1 else set()
    edges = [0, *sorted(cuts), columns]
    return tuple(b - a for a, b in itertools.pairwise(edges))


@st.composite
def notes(draw: st.DrawFn, rows: int, columns: int) -> Annotation:
    """Any annotation that fits a linear."""
    widths = draw(tilings(columns))
    many = st.lists(references(), min_size=1, max_size=3).map(tuple)
    stored = draw(many)
    suffixes = tuple(draw(names) for _ in stored)
    lowered: dict[str, Any] = {
        "tensors": stored,
        "suffixes": suffixes,
        "error": draw(st.none() | positive),
        "block_errors": tuple(draw(st.lists(positive, max_size=2))),
    }
    group = draw(st.sampled_from([8, 16]))
    grid = UniformGrid(
        rows=rows,
        columns=columns,
        group=group,
        bits=draw(st.sampled_from([1, 2, 4, 8])),
        zero=draw(st.sampled_from(["float", "packed"])),
    )
    blocks = len(block_widths(columns, group))
    planes = MultiBinary(
        rows=rows,
        columns=columns,
        block=group,
        orders=tuple(draw(st.integers(1, 4)) for _ in range(blocks)),
        scale_bits=draw(st.sampled_from([8, 16])),
    )
    order = draw(st.integers(1, 4))
    made: list[Callable[[], Annotation]] = [
        lambda: Kept(reason=draw(st.text())),
        lambda: Moment(
            tensor=draw(references(columns, columns)),
            samples=draw(counts),
            tokens=draw(counts),
            masked=draw(shares),
            geometry=draw(st.sampled_from(["mcs", "block-causal"])),
            token_weights=draw(st.sampled_from(["equal", "certainty"])),
            masked_weight=draw(st.just(1.0) | st.floats(0.01, 100)),
            routed=draw(st.none() | st.integers(0, 99)),
        ),
        lambda: CrossMoment(
            tensor=draw(references(columns, columns)),
            drift=draw(positive),
            residual=draw(st.none() | references(rows, columns)),
        ),
        lambda: Factor(
            tensor=draw(references(columns, columns)),
            damp=draw(positive),
            attempts=draw(st.integers(0, 9)),
            dead=tuple(draw(st.sets(st.integers(0, columns - 1)))),
        ),
        lambda: Salience(blocks=tuple(draw(positive) for _ in widths), widths=widths),
        lambda: Costs(
            blocks=tuple(tuple(draw(positive) for _ in range(order)) for _ in widths),
            widths=widths,
            energy=draw(positive),
            scale_bits=draw(st.sampled_from([8, 16])),
        ),
        lambda: LossSensitivity(rise=draw(positive), error=draw(positive), positions=draw(counts)),
        lambda: Orders(
            blocks=tuple(draw(st.integers(1, 4)) for _ in widths),
            widths=widths,
            stored_bytes=draw(st.none() | st.just(2**60)),
        ),
        lambda: Orders(blocks=(order,) * len(widths), widths=widths, budget=order, scope="model"),
        lambda: Packed(
            tensors=stored,
            suffixes=suffixes,
            payload_bits=draw(st.integers(0, 2**40)),
            weights=rows * columns,
        ),
        lambda: Tuned(roles=("bias",), tensors=(draw(bias(rows)),)),
        lambda: Daq(
            codec=planes, outliers=draw(shares), sweeps=draw(st.integers(0, 99)), **lowered
        ),
        lambda: Gptq(codec=grid, **lowered),
        lambda: Rtn(codec=grid, **lowered),
        lambda: Vocabulary(codec=grid, weight_error=draw(positive), **lowered),
        lambda: Opaque(
            unknown_tag=draw(st.from_regex(r"\Ax-[a-z0-9]{1,8}\Z")),
            data=draw(st.dictionaries(st.text(max_size=5), plain, max_size=3)),
        ),
    ]
    return draw(st.sampled_from(made))()


def bias(rows: int) -> st.SearchStrategy[TensorRef]:
    """A reference to a bias in floating point."""
    return references(rows).map(lambda ref: ref.model_copy(update={"dtype": "f16"}))


class _Building:
    """A model that grows node by node; ``shape`` is that of the value read last."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.taken: set[str] = set()
        self.prefix = draw(st.sampled_from(["", "model.", "a  b"]) | st.text(max_size=4))
        leading: tuple[Dimension, ...] = draw(st.sampled_from([("B", "L"), ("N",), ("B*L", 3), ()]))
        self.value = self.name("")
        self.shape: tuple[Dimension, ...] = (*leading, draw(st.integers(1, 9)))
        given = ValueType(dtype="f32", shape=self.shape)
        self.nodes = [Node(name=self.value, op="input", type=given)]

    def name(self, region: str) -> str:
        """A name that is free; of a region's it may start with the region's or not."""
        leaf = self.draw(node_names.filter(lambda name: name not in self.taken))
        full = f"{region}.{leaf}"
        fits = re.fullmatch(r"n[\w.\-\u200d]*", region) and full not in self.taken
        inside = fits and self.draw(st.booleans())
        self.taken.add(full if inside else leaf)
        return full if inside else leaf

    def parameter(self, name: str, role: str, *shape: int) -> Parameter:
        usual = f"{self.prefix}{name}.{role}"
        key = self.draw(st.just(usual) | names)
        return Parameter(name=key, role=role, dtype="bf16", shape=shape)

    def function(self, region: str) -> None:
        """A node that reads some values and gives one of the same shape."""
        read = self.draw(st.lists(st.sampled_from([node.name for node in self.nodes]), max_size=3))
        op = self.draw(st.sampled_from(["add", "rms-norm", "Silu", "f.x_y"]))
        name = self.name(region)
        owned = (self.parameter(name, "weight", 3),) if op == "rms-norm" else ()
        given = ValueType(dtype="bf16", shape=self.shape)
        path = self.draw(st.just("") | st.just(f"{self.prefix}{name}") | names)
        self.nodes.append(
            Node(name=name, op=op, inputs=tuple(read), type=given, path=path, parameters=owned)
        )
        self.value = name

    def linears(self, region: str) -> Stage:
        """Linears that read the latest value."""
        value, shape = self.value, self.shape
        layers = []
        for _ in range(self.draw(st.integers(1, 3))):
            rows, columns = self.draw(st.integers(1, 9)), int(shape[-1])
            name = self.name(region)
            owned = [self.parameter(name, "weight", rows, columns)]
            if self.draw(st.booleans()):
                owned.append(self.parameter(name, "bias", rows))
            self.shape = (*shape[:-1], rows)
            self.nodes.append(
                Node(
                    name=name,
                    op="linear",
                    inputs=(value,),
                    type=ValueType(dtype="f32", shape=self.shape),
                    path=f"{self.prefix}{name}",
                    parameters=tuple(owned),
                )
            )
            layers.append(name)
        self.value = layers[-1]
        return Stage(value=value, layers=tuple(self.draw(st.permutations(layers))))

    def region(self, number: int) -> Region:
        name = f"{self.draw(st.text(max_size=4) | node_names)}{number}"
        start = len(self.nodes)
        self.function(name)
        stages = []
        for _ in range(self.draw(st.integers(0, 2))):
            stages.append(self.linears(name))
            if self.draw(st.booleans()):
                self.function(name)
            else:
                self.value = self.nodes[-1].name
        inside = tuple(node.name for node in self.nodes[start:])
        return Region(name=name, nodes=inside, stages=tuple(stages))


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Regions with or without stages, and nodes between them."""
    building = _Building(draw)
    regions = []
    for number in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            building.function("")
        regions.append(building.region(number))
    if draw(st.booleans()):
        building.linears("")
    return Structure(
        name=draw(st.text(max_size=9) | st.just("a   qdc-ir 1   b")),
        prefix=building.prefix,
        model=ModelFacts(
            family=draw(st.text(max_size=9) | st.sampled_from(["a   prefix b", "a   prefix "])),
            mask_token_id=draw(st.integers(0, 2**40)),
            vocabulary=draw(st.integers(1, 2**40)),
            max_length=draw(st.integers(1, 2**40)),
            logits_shift=draw(st.integers(0, 1)),
            attention_block=draw(st.none() | st.integers(1, 9)),
            canvas=draw(st.none() | st.integers(1, 9)),
            logit_cap=draw(st.none() | st.floats(1e-9, 1e30)),
        ),
        nodes=tuple(building.nodes),
        regions=tuple(regions),
    )


@st.composite
def graphs(draw: st.DrawFn) -> LayerGraph:
    """Any structure, with any annotations on its linears."""
    graph = LayerGraph(draw(structures()))
    for node in list(graph.linears()):
        for note in draw(st.lists(notes(node.rows, node.columns), max_size=3)):
            graph.annotate(node.name, note)
    graph.after = draw(st.text(max_size=30) | st.just("stages(calibrate-mcs{samples=8}),pack"))
    return graph
