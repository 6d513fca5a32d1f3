"""The instrument that writes the graph as it is after chosen passes."""

import re
from pathlib import Path

from qdc.compiling.instruments import Instrument
from qdc.ir.annotation import Annotation
from qdc.ir.dump import to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.printer import render
from qdc.pipeline.plan import Plan
from qdc.streaming.unit import Unit

DUMP_NAME = re.compile(r"\d\d_[\w-]+\.(qdc|txt)")
Notes = dict[str, tuple[Annotation, ...]]


class Dumper(Instrument):
    """Note what every node carries right after a pass, then write one graph for each pass.

    Passes run region by region, so no moment of the run shows the whole model after one pass; the
    dump is put together from its regions.
    """

    def __init__(self, plan: Plan, folder: Path, places: frozenset[int], graph: LayerGraph) -> None:
        """Dump after the passes at these places; ``graph`` is still as the front end made it."""
        self.plan, self.folder, self.places, self.graph = plan, folder, places, graph
        self._initial = notes_of(graph, [node.name for node in graph])
        self._seen: dict[int, Notes] = {}

    def after(self, place: int, unit: Unit) -> None:
        """Note what the unit's nodes carry now."""
        if place in self.places:
            self._seen.setdefault(place, {}).update(notes_of(unit.graph, unit.touched()))

    def write(self) -> list[Path]:
        """Write ``NN_pass.qdc`` and ``NN_pass.txt`` for each chosen pass; return the files.

        Dumps of an earlier run in the same folder are removed: two runs do not mix.
        """
        if not self._seen:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            if DUMP_NAME.fullmatch(old.name):
                old.unlink()
        names = [step.name for step in self.plan.passes()]
        written = []
        for place, notes in sorted(self._seen.items()):
            graph = self.graph.with_annotations(
                {**self._initial, **notes}, str(self.plan.cut(place))
            )
            binary = self.folder / f"{place + 1:02d}_{names[place]}.qdc"
            binary.write_bytes(to_bytes(graph))
            text = binary.with_suffix(".txt")
            text.write_text(render(graph), encoding="utf-8")
            written += [binary, text]
        return written


def notes_of(graph: LayerGraph, names: list[str]) -> Notes:
    """What these nodes carry now."""
    return {name: tuple(graph.annotations(name).values()) for name in names}
