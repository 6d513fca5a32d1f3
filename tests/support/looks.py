"""What passes leave on nodes while a compile runs: a copy for tests to compare."""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from qdc.ir.annotation import Annotation
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.compiles import Spy, run_passes


class Looked(NamedTuple):
    """What ``look`` saw.

    Attributes:
        notes: by kind, then by path of the node: tensor and annotation.
        tokens: of the samples, where a stream is open.
    """

    notes: dict[type[Annotation], dict[str, tuple[Tensor, Any]]]
    tokens: list[Tensor]

    def tensors(self, kind: type[Annotation]) -> dict[str, Tensor]:
        """The tensors of one kind, by path."""
        return {path: tensor for path, (tensor, _) in self.notes[kind].items()}


def looked(model: Path, text: Path, folder: Path, passes: str, *kinds: type[Annotation]) -> Looked:
    """Run a pipeline that has ``look`` somewhere, which reads annotations of some kinds."""
    seen = Looked({kind: {} for kind in kinds}, [])

    class Look(Spy):
        """Keep annotations and samples."""

        name: ClassVar[str] = "look"
        requires = kinds

        def run(self, unit: Unit) -> None:
            for node in (*unit.layers(), *unit.graph.vocabulary()):
                for kind, kept in seen.notes.items():
                    note: Any = unit.graph.get(node.name, kind)
                    if note is not None:
                        kept[node.path] = unit.get(note.tensor).clone(), note
            seen.tokens[:] = [s.tokens for s in unit.open_streams().values()][:1]

    known = standard_registry()
    known.add(Look)
    run_passes(model, folder, known, passes, calibration=text)
    return seen
