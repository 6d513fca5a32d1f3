"""The layer graph: typed nodes in execution order, edges and traversals on networkx."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

import networkx as nx
from pydantic import Field

from qdc.errors import (
    InvalidGraph,
    MissingAnnotation,
    UnknownName,
    nearest,
)
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Kept
from qdc.ir.facts import ModelFacts
from qdc.ir.types import Frozen, Parameter, ValueType
from qdc.ir.waves import Waves, waves_of

A = TypeVar("A", bound=Annotation)
LINEAR, EMBEDDING = "linear", "embedding"


class Node(Frozen):
    """One operation and the value that it produces; the value has the node's name."""

    name: str = Field(pattern=r"^\w[\w.\-]*$", max_length=256)
    """Module path without the graph's prefix, unique."""
    op: str = Field(pattern=r"^[A-Za-z][\w.\-]*$", max_length=256)
    """``input``, ``linear``, ``embedding``, another leaf module, or a function's name."""
    inputs: tuple[str, ...] = ()
    type: ValueType
    path: str = ""
    """Full module path: the keys of the checkpoint start with it."""
    parameters: tuple[Parameter, ...] = ()

    @property
    def weight(self) -> Parameter:
        """The weight that the node reads. Raises ``InvalidGraph`` if it has none."""
        for parameter in self.parameters:
            if parameter.role == "weight":
                return parameter
        raise InvalidGraph("the node has no weight", where=[f"%{self.name}"])

    @property
    def kind(self) -> str:
        """Its name without numbers, ``blocks.*.q_proj``: nodes of one place in all regions."""
        return re.sub(r"\.\d+\.", ".*.", f".{self.name}").strip(".")

    @property
    def rows(self) -> int:
        """Outputs of a linear."""
        return int(self.weight.shape[0])

    @property
    def columns(self) -> int:
        """Inputs of a linear."""
        return int(self.weight.shape[1])


class Stage(Frozen):
    """The linears that read one value and are calibrated together."""

    value: str
    """Name of the value that they read."""
    layers: tuple[str, ...] = Field(min_length=1)


class Region(Frozen):
    """One transformer block: what is streamed through memory at a time."""

    name: str
    nodes: tuple[str, ...] = Field(min_length=1)
    stages: tuple[Stage, ...]


class Structure(Frozen):
    """Everything of a graph that passes do not change."""

    name: str
    prefix: str = ""
    """Common start of the module paths, left out of the node names."""
    model: ModelFacts
    nodes: tuple[Node, ...]
    regions: tuple[Region, ...] = ()


class LayerGraph:
    """A model's structure, and on each node the annotations that passes have written."""

    def __init__(self, structure: Structure) -> None:
        """Index the nodes. Raises ``InvalidGraph`` if a name is taken twice or an input unknown."""
        self.structure = structure
        self.after: str = ""
        """The pipeline text that led here; pasteable."""
        self._nodes = {node.name: node for node in structure.nodes}
        self._places = {node.name: place for place, node in enumerate(structure.nodes)}
        self._changed: dict[str, None] = {}
        self._owners: dict[str, str] = {}
        self.inside = {n: region for region in structure.regions for n in region.nodes}
        """By name of a node, the region that it lies in; every other one lies outside of them."""
        for node in structure.nodes:
            for parameter in node.parameters:
                self._owners.setdefault(parameter.name, node.name)
        self._annotations: dict[str, dict[str, Annotation]] = {name: {} for name in self._nodes}
        if len(self._nodes) != len(structure.nodes):
            raise InvalidGraph("two nodes have one name", where=_twice(structure.nodes))
        self.edges: nx.DiGraph[str] = nx.DiGraph()
        """``producer -> consumer`` by name."""
        self.edges.add_nodes_from(self._nodes)
        for node in structure.nodes:
            unknown = [name for name in node.inputs if name not in self._nodes]
            if unknown:
                raise InvalidGraph(
                    f"an input is no node: {', '.join(unknown)}", where=[f"%{node.name}"]
                )
            self.edges.add_edges_from((name, node.name) for name in node.inputs)

    @property
    def name(self) -> str:
        """Name of the graph."""
        return self.structure.name

    @property
    def model(self) -> ModelFacts:
        """Facts of the model."""
        return self.structure.model

    @property
    def regions(self) -> tuple[Region, ...]:
        """Regions in execution order."""
        return self.structure.regions

    @cached_property
    def waves(self) -> Mapping[str, Waves]:
        """By the name of each region how its stages are taken."""
        return {region.name: waves_of(self, region) for region in self.regions}

    def __eq__(self, other: object) -> bool:
        """Whether structure, pipeline and annotations are equal, those of a node in their order."""
        if not isinstance(other, LayerGraph):
            return NotImplemented
        return (
            self.structure == other.structure
            and self.after == other.after
            and all(
                list(notes.values()) == list(other.annotations(name).values())
                for name, notes in self._annotations.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]  # passes change it

    def __iter__(self) -> Iterator[Node]:
        """Nodes in execution order."""
        return iter(self.structure.nodes)

    def __contains__(self, name: object) -> bool:
        """Whether a node has this name."""
        return name in self._nodes

    def __getitem__(self, name: str) -> Node:
        """Return the node of this name. Raises ``UnknownName`` with the nearest names."""
        if name not in self._nodes:
            raise UnknownName(f"no node is called {name!r}", help=nearest(name, self._nodes))
        return self._nodes[name]

    def linears(self) -> Iterator[Node]:
        """Every linear, quantized or kept, in execution order."""
        return (node for node in self if node.op == LINEAR)

    def layers(self, stages: Iterable[Stage] | None = None) -> Iterator[Node]:
        """The linears that are to be quantized: those inside regions that nobody keeps.

        Args:
            stages: only those of these stages; of all regions if not given.
        """
        if stages is None:
            stages = (stage for region in self.regions for stage in region.stages)
        inside = {layer for stage in stages for layer in stage.layers if layer in self}
        nodes = (self[name] for name in sorted(inside, key=self._places.__getitem__))
        return (n for n in nodes if n.op == LINEAR and self.get(n.name, Kept) is None)

    def outside(self) -> Iterator[Node]:
        """The nodes that no region has, in execution order."""
        return (node for node in self if node.name not in self.inside)

    def vocabulary(self) -> Iterator[Node]:
        """Embedding and output head: the matrices outside the regions with a row for each token.

        A head that is tied to the embedding has no matrix of its own.
        """
        found = (node for node in self.outside() if node.op in (LINEAR, EMBEDDING))
        own = (node for node in found if self.owner(node.name) == node.name)
        return (node for node in own if node.rows == self.model.vocabulary)

    def owner(self, name: str, role: str = "weight") -> str:
        """Name of the first node that reads this parameter: the node itself, unless it is tied.

        What passes write of the owner's weight holds for all that read it.
        """
        found = (p.name for p in self[name].parameters if p.role == role)
        return next((self._owners[parameter] for parameter in found), name)

    def annotate(self, name: str, note: Annotation) -> None:
        """Write ``note`` on a node, in place of what its slot held."""
        node = self[name]
        self._annotations[node.name][note.fills] = note
        self._changed[node.name] = None

    def annotations(self, name: str) -> Mapping[str, Annotation]:
        """All annotations of a node by slot, in the order in which they were first written."""
        return self._annotations[self[name].name]

    def get(self, name: str, kind: type[A]) -> A | None:
        """Return the annotation of this kind, or None."""
        note = self.annotations(name).get(kind.slot_name())
        return note if isinstance(note, kind) else None

    def require(self, name: str, kind: type[A]) -> A:
        """Return the annotation of this kind. Raises ``MissingAnnotation``."""
        note = self.get(name, kind)
        if note is None:
            raise MissingAnnotation(
                f"the layer has no @{kind.slot_name()}",
                where=[f"%{name}"],
                help="run a pass that provides it first: qdc passes",
            )
        return note

    def remove(self, name: str, kind: type[Annotation]) -> None:
        """Take an annotation away, if there is one."""
        self.discard(name, kind.slot_name())

    def discard(self, name: str, slot: str) -> None:
        """Empty a slot of a node, if it is filled."""
        self._annotations[self[name].name].pop(slot, None)
        self._changed[name] = None

    def take_changed(self) -> tuple[str, ...]:
        """Names of the nodes whose annotations were written or removed since the last call."""
        names = tuple(self._changed)
        self._changed.clear()
        return names

    def restore(self, notes: Mapping[str, Iterable[Annotation]]) -> None:
        """Carry just these annotations from now on."""
        for carried in self._annotations.values():
            carried.clear()
        for name, kept in notes.items():
            for note in kept:
                self.annotate(name, note)

    def with_annotations(
        self, notes: Mapping[str, Iterable[Annotation]], after: str
    ) -> "LayerGraph":
        """Return a graph of the same structure that carries just these annotations."""
        graph = LayerGraph(self.structure)
        graph.after = after
        for name, kept in notes.items():
            for note in kept:
                graph.annotate(name, note)
        return graph


def _twice(nodes: tuple[Node, ...]) -> list[str]:
    seen: set[str] = set()
    return [f"%{n.name}" for n in nodes if n.name in seen or seen.add(n.name)]  # type: ignore[func-returns-value]
