"""The commands that compile and look, and their options; those for models are in ``app_models``.

What each does is in the file of its name.
Nothing here imports torch: ``qdc --help`` answers at once.
"""

from typing import Annotated

import typer

from qdc.cli.fields import from_fields
from qdc.cli.options import (
    Json,
    Names,
    OptOptions,
    PluginFiles,
    ShowOptions,
    app,
)
from qdc.comparing.options import CompareOptions
from qdc.compiling.options import CompileOptions
from qdc.errors import QdcError
from qdc.planning.options import ForecastOptions


@app.command()
@from_fields
def compile(
    context: typer.Context,
    options: CompileOptions,
    timings: Annotated[
        bool, typer.Option("--timings", help="Seconds and peak memory by pass")
    ] = False,
    remarks: Annotated[
        bool, typer.Option("--remarks", help="What passes say of each layer")
    ] = False,
    json: Json = False,
) -> None:
    """Trace a model, run passes, write an artifact.

    \b
    Examples:
      qdc compile examples/tiny-llada -o out
      qdc compile MODEL -o out --effort low --calibration docs.jsonl --seed 1
      qdc compile MODEL -o out --calibration chats --chat-fields prompt,answer
      qdc compile MODEL -o out --passes 'stages(calibrate-mcs,rtn-lower),pack'
      qdc compile MODEL -o out --plugin my_pass.py --passes 'my-pass,...'
      torchrun --nproc-per-node 4 -m qdc compile MODEL -o out --device cuda
    """  # noqa: D301
    from qdc.cli.compile import compile_command

    compile_command(
        options, timings=timings, remarks=remarks, arguments=context.obj or [], as_json=json
    )


@app.command()
@from_fields
def plan(options: ForecastOptions, json: Json = False) -> None:
    """Predict size, memory and time to compile and to run.

    Of an artifact it says what memory running it takes; --length is that of the forward.

    \b
    Examples:
      qdc plan MODEL
      qdc plan MODEL --effort low
      qdc plan MODEL --passes best --samples 64 --length 2048 --json
      qdc plan MODEL --host-memory 8G --device cpu
      qdc plan MODEL --gpu 4090 --effort high
      qdc plan out
    """  # noqa: D301
    from qdc.cli.plan import plan_command

    plan_command(options, as_json=json)


@app.command()
@from_fields
def compare(
    options: CompareOptions,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown tables")] = False,
    json: Json = False,
) -> None:
    """Compile by several methods, judge them side by side.

    \b
    Examples:
      qdc compare MODEL --methods default,gptq --text held.jsonl --out DIR
      qdc compare MODEL --methods all --seeds 0,1,2 --jobs 2 --text T --out DIR
      qdc compare MODEL --methods gptq --vary geometry=clean,mcs --text T -o DIR
    """  # noqa: D301
    if json and markdown:
        raise QdcError("--json and --markdown exclude each other", help="leave one out")
    from qdc.cli.compare import compare_command

    compare_command(options, as_json=json, as_markdown=markdown)


@app.command()
@from_fields
def show(options: ShowOptions, json: Json = False) -> None:
    """Print the IR of a dump, an artifact or a model.

    \b
    Examples:
      qdc show out --only 'blocks.0.*' --tags orders,packed
      qdc show out --full > ir.txt
      diff <(qdc show d/02_sensitivity.qdc) <(qdc show d/03_abmp-allocate.qdc)
    """  # noqa: D301
    from qdc.cli.show import show_command

    show_command(options, as_json=json)


@app.command()
@from_fields
def opt(options: OptOptions, json: Json = False) -> None:
    """Run passes that need no weights on a dump.

    \b
    Examples:
      qdc opt d/02_sensitivity.qdc --passes 'abmp-allocate{ratio=0.1}'
      qdc show d/05_measure-orders.qdc --full | qdc opt - --passes allocate
      qdc opt d/02_sensitivity.qdc --passes mine --plugin my_pass.py -o x.txt
    """  # noqa: D301
    from qdc.cli.opt import opt_command

    opt_command(options, as_json=json)


@app.command()
def passes(
    names: Names = None,
    provides: Annotated[
        str | None, typer.Option(metavar="TAG", help="Passes that write this annotation")
    ] = None,
    plugin: PluginFiles = None,
    json: Json = False,
) -> None:
    """List passes and named pipelines, or describe some.

    \b
    Examples:
      qdc passes
      qdc passes daq-lower
      qdc passes --provides salience
    """  # noqa: D301
    from qdc.cli.lists import passes_command

    passes_command(names or [], provides, plugin or [], json)


@app.command()
def backends(names: Names = None, plugin: PluginFiles = None, json: Json = False) -> None:
    """List backends that write artifacts, or describe some.

    \b
    Examples:
      qdc backends
      qdc backends triton
      qdc backends --plugin my_backend.py --json
    """  # noqa: D301
    from qdc.cli.lists import backends_command

    backends_command(names or [], plugin or [], json)


@app.command()
def families(plugin: PluginFiles = None, json: Json = False) -> None:
    """List the model families, and what was proved of each.

    \b
    Examples:
      qdc families
      qdc families --plugin my_family.py --json
    """  # noqa: D301
    from qdc.cli.families import families_command

    families_command(plugin or [], json)


@app.command()
def strategies(names: Names = None, plugin: PluginFiles = None, json: Json = False) -> None:
    """List strategies that decode, and what they read.

    \b
    Examples:
      qdc strategies
      qdc strategies entropy
      qdc strategies --plugin my_strategy.py --json
    """  # noqa: D301
    from qdc.cli.strategies import strategies_command

    strategies_command(names or [], plugin or [], json)
