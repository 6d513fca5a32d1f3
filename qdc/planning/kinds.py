"""What a model is made of: regions, and layers by place and shape; what is alike is told once."""

from collections.abc import Iterable, Iterator

from qdc.format.codec import Codec
from qdc.ir.activations import InputCodes
from qdc.ir.graph import LayerGraph, Node
from qdc.planning.outlook import LayerKind, RegionKind
from qdc.streaming.account import Account


def region_kinds(graph: LayerGraph) -> Iterator[RegionKind]:
    """Regions in order, neighbours that are alike folded into one."""
    known: list[RegionKind] = []
    for region in graph.regions:
        stages = tuple(
            tuple(name.removeprefix(f"{region.name}.") for name in stage.layers)
            for stage in graph.waves[region.name].each()
        )
        nodes = [graph[name] for stage in region.stages for name in stage.layers]
        weights = sum(node.rows * node.columns for node in nodes)
        waves = tuple(len(wave) for wave in graph.waves[region.name].stages)
        found = RegionKind(
            first=region.name, regions=1, stages=stages, waves=waves, weights=weights
        )
        if known and (known[-1].stages, known[-1].weights) == (stages, weights):
            known[-1] = known[-1].model_copy(update={"regions": known[-1].regions + 1})
        else:
            known.append(found)
    yield from known


def layer_kinds(account: Account, layers: Iterable[Node]) -> Iterator[LayerKind]:
    """Layers of one place and shape together, with the vocabulary's matrices behind them."""
    graph, groups = account.program.graph, dict[tuple[str, int, int], list[Node]]()
    lowered = (node for node in graph.vocabulary() if node.name in account.codecs)
    for node in (*layers, *lowered):
        groups.setdefault((node.kind, node.rows, node.columns), []).append(node)
    for (kind, rows, columns), nodes in groups.items():
        codecs = [account.codecs.get(node.name) for node in nodes]
        known = [codec for codec in codecs if codec is not None]
        whole = len(known) == len(nodes) and not account.unknown
        yield LayerKind(
            kind=kind,
            layers=len(nodes),
            rows=rows,
            columns=columns,
            codec=known[0].name if whole else None,
            nbytes=_layers_bytes(graph, nodes, known) if whole else None,
        )


def _layers_bytes(graph: LayerGraph, nodes: Iterable[Node], codecs: Iterable[Codec]) -> int:
    """Stored bytes of layers: what their codecs hold, and static scales of what they read."""
    notes = (graph.get(node.name, InputCodes) for node in nodes)
    static = sum(note.nbytes for note in notes if note is not None)
    return static + sum(codec.nbytes for codec in codecs)
