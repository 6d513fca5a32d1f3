"""``qdc show``: the text of an IR dump, of an artifact, or of a traced model."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qdc.artifact.writer import DUMP
from qdc.checkpoint.folder import read_json
from qdc.cli.options import ShowOptions
from qdc.cli.reading import STDIN, read_graph, refuse_part
from qdc.cli.terminal import print_json
from qdc.errors import InvalidArtifact, QdcError, UnknownName, nearest
from qdc.ir.graph import LayerGraph
from qdc.ir.lines import tag_of
from qdc.ir.parser import Parsed
from qdc.ir.printer import as_data, render
from qdc.pipeline.registry import Registry, standard_registry

CONFIG = "config.json"
WHAT = "give a .qdc dump, a text of one, an artifact or a model folder"


def show_command(options: ShowOptions, *, as_json: bool) -> None:
    """Print a graph."""
    if options.full and as_json:
        raise QdcError("--json has every fact, --full or not", help="leave one of them out")
    registry = standard_registry(options.plugins)
    parsed = _parsed(options.path, registry)
    if options.full:
        refuse_part(parsed, options.path)
    graph, tags = parsed.graph, options.wanted
    if tags is not None:
        _check_tags(tags, graph, registry)
    if as_json:
        print_json(as_data(graph, options.only, tags))
    else:
        sys.stdout.write(render(graph, options.only, tags, full=options.full))


def _parsed(path: Path, registry: Registry) -> Parsed:
    if str(path) != STDIN and not path.exists():
        raise QdcError(f"no such file or folder: {path}", help=WHAT)
    found = read_graph(path, registry.annotations())
    if found is not None:
        return found
    if not (path / CONFIG).is_file():
        raise QdcError(f"{path} holds neither {CONFIG} nor {DUMP}", help=WHAT)
    if read_json(path / CONFIG).get("quantization_config") is not None:
        raise InvalidArtifact(
            f"the artifact has lost its {DUMP}",
            where=[str(path)],
            help="compile it again; qdc run does not need that file",
        )
    from qdc.frontend.opening import open_model

    return Parsed(open_model(path, families=registry.families)[1].graph, full=True)


def _check_tags(tags: Sequence[str], graph: LayerGraph, registry: Registry) -> None:
    known = set(registry.annotations())
    for node in graph:
        for note in graph.annotations(node.name).values():
            known.add(tag_of(note))
    for tag in tags:
        if tag not in known:
            raise UnknownName(f"no annotation is called {tag!r}", help=nearest(tag, known))
