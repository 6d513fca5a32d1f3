"""``qdc show``: the text of an IR dump, of an artifact, or of a traced model."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qdc.checkpoint.folder import read_json
from qdc.cli.terminal import print_json
from qdc.errors import InvalidArtifact, QdcError, UnknownName, nearest
from qdc.ir.dump import read
from qdc.ir.graph import LayerGraph
from qdc.ir.opaque import Opaque
from qdc.ir.printer import as_data, render
from qdc.pipeline.registry import Registry, standard_registry

CONFIG, DUMP = "config.json", "ir.qdc"
WHAT = "give a .qdc dump, an artifact or a model folder"


def show_command(
    path: Path, only: str, tags: Sequence[str] | None, plugins: Sequence[Path], as_json: bool
) -> None:
    """Print a graph."""
    registry = standard_registry(plugins)
    graph = _graph(path, registry)
    if tags is not None:
        _check_tags(tags, graph, registry)
    if as_json:
        print_json(as_data(graph, only, tags))
    else:
        sys.stdout.write(render(graph, only, tags))


def _graph(path: Path, registry: Registry) -> LayerGraph:
    if path.is_file():
        return read(path, registry.annotations())
    if (path / DUMP).is_file():
        return read(path / DUMP, registry.annotations())
    if not path.is_dir():
        raise QdcError(f"no such file or folder: {path}", help=WHAT)
    if not (path / CONFIG).is_file():
        raise QdcError(f"{path} holds neither {CONFIG} nor {DUMP}", help=WHAT)
    if "quantization_config" in read_json(path / CONFIG):
        raise InvalidArtifact(
            f"the artifact has lost its {DUMP}",
            where=[str(path)],
            help="compile it again; qdc run does not need that file",
        )
    from qdc.frontend.opening import open_model

    return open_model(path, families=registry.families)[1].graph


def _check_tags(tags: Sequence[str], graph: LayerGraph, registry: Registry) -> None:
    known = set(registry.annotations())
    for node in graph:
        for note in graph.annotations(node.name).values():
            known.add(note.unknown_tag if isinstance(note, Opaque) else note.tag)
    for tag in tags:
        if tag not in known:
            raise UnknownName(f"no annotation is called {tag!r}", help=nearest(tag, known))
