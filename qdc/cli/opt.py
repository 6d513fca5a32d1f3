"""``qdc opt``: passes on a dump, its text before and after."""

import sys

from qdc.artifact.writer import DUMP
from qdc.cli.options import OptOptions
from qdc.cli.reading import STDIN, read_graph, refuse_part
from qdc.cli.terminal import print_json
from qdc.compiling.rewriting import rewrite
from qdc.disk import refuse_special, replace_bytes
from qdc.errors import QdcError
from qdc.ir.dump import to_bytes
from qdc.ir.printer import as_data, render
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry

BINARY = ".qdc"


def opt_command(options: OptOptions, *, as_json: bool) -> None:
    """Run passes on a dump and print or write the result."""
    registry = standard_registry(options.plugins)
    plan = build_plan(options.passes, registry)
    tags, out = registry.annotations(), options.out
    _check_output(options, as_json=as_json)
    parsed = read_graph(options.dump, tags)
    if parsed is None:
        raise QdcError(
            f"{options.dump} holds no {DUMP}",
            help="give a .qdc dump, a text or an artifact; of a model: qdc show MODEL --full",
        )
    if options.full or out is not None:
        refuse_part(parsed, options.dump)
    graph = parsed.graph
    said = rewrite(graph, plan, tags)
    if out is not None:
        binary = out.suffix == BINARY
        replace_bytes(out, to_bytes(graph) if binary else render(graph, full=True).encode())
    if as_json:
        print_json({**as_data(graph), "remarks": said})
    else:
        text = render(graph, full=options.full) if out is None else f"wrote {out}\n"
        sys.stdout.write(text)
    if options.remarks:
        sys.stderr.writelines(f"{line}\n" for line in said)


def _check_output(options: OptOptions, *, as_json: bool) -> None:
    """Refuse what would be ignored, or could not be written, before anything runs."""
    out = options.out
    if options.full and (as_json or out is not None):
        other = "--json" if out is None else "what -o writes"
        raise QdcError(f"{other} has every fact, --full or not", help="leave --full out")
    if out is not None and str(out) == STDIN:
        raise QdcError("-o takes a file", help="without -o the result goes to stdout")
    if out is not None:
        refuse_special(out)
