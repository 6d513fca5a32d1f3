"""The commands and their options; what they do is in the files beside this one.

Nothing here imports torch: ``qdc --help`` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.options import (
    BackendName,
    Calibration,
    ChatFields,
    Device,
    HostMemory,
    Json,
    Length,
    Passes,
    Plugins,
    RunBackend,
    Runnable,
    Samples,
    States,
    TextField,
    app,
)
from qdc.cli.ranks import refuse_ranks
from qdc.version import __version__


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qdc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Compile diffusion language models to a 2-bit average.

    \b
    qdc plan MODEL                     sizes, memory and time beforehand
    qdc compile MODEL -o OUT           trace, quantize, pack, write an artifact
    qdc run OUT "a text with <mask>"   fill the gaps
    qdc generate OUT "a prompt"        write on, and watch it unmask
    qdc serve OUT                      OpenAI's protocol, and a page
    qdc eval OUT --text held.jsonl --against MODEL
    qdc show OUT --only 'blocks.0.*'   read the IR
    qdc opt DUMP --passes TEXT         run passes on it
    """  # noqa: D301
    if context.invoked_subcommand != "compile":
        refuse_ranks(context.invoked_subcommand or "")


@app.command()
def compile(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Folder: config.json, tokenizer.json, *.safetensors"),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Folder to write")],
    passes: Passes = "default",
    backend: BackendName = "reference",
    calibration: Calibration = None,
    text_field: TextField = "text",
    chat_fields: ChatFields = None,
    samples: Samples = None,
    length: Length = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of windows and masks")] = None,
    states: States = "bf16",
    host_memory: HostMemory = None,
    frontend: Annotated[
        str,
        typer.Option(metavar="NAME", help="fx: own families; export: transformers' classes; auto"),
    ] = "auto",
    device: Device = "cpu",
    deterministic_reduce: Annotated[
        bool,
        typer.Option(
            "--deterministic-reduce",
            help="Under torchrun: the bytes of one process",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an artifact that is at OUT")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted compile of OUT")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard it and begin anew")] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write no page to OUT-report")
    ] = False,
    plugin: Plugins = None,
    dump_after: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Write the IR after these passes: all, or a,b"),
    ] = None,
    dump_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where [default: OUT-dumps]")
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(metavar="PASS", help="Stop there: write the IR, no artifact"),
    ] = None,
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
      qdc compile MODEL -o out --calibration docs.jsonl --samples 64 --seed 1
      qdc compile MODEL -o out --calibration chats --chat-fields prompt,answer
      qdc compile MODEL -o out --passes 'stages(calibrate-mcs,sensitivity,
                   abmp-allocate{ratio=0.1},daq-lower{sweeps=30}),pack'
      qdc compile MODEL -o out --dump-after all --timings
      qdc compile MODEL -o out --resume
      qdc compile MODEL -o out --plugin my_pass.py --passes 'my-pass,...'
      torchrun --nproc-per-node 4 -m qdc compile MODEL -o out --device cuda
    """  # noqa: D301
    from qdc.cli.compile import compile_command
    from qdc.text.records import Fields

    compile_command(
        model=model,
        out=out,
        passes=passes,
        backend=backend,
        calibration=calibration,
        fields=Fields.parse(text_field, chat_fields),
        overrides={"samples": samples, "length": length, "seed": seed},
        states=states,
        host_memory=host_memory,
        front_end=frontend,
        device=device,
        deterministic_reduce=deterministic_reduce,
        force=force,
        resume=resume,
        restart=restart,
        write_report=not no_report,
        plugins=plugin or [],
        dump_after=[name.strip() for name in dump_after.split(",")] if dump_after else [],
        dump_folder=dump_dir,
        stop_after=stop_after,
        timings=timings,
        remarks=remarks,
        arguments=context.obj or [],
        as_json=json,
    )


@app.command()
def plan(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Folder: config.json, and shards or just their index"),
    ],
    passes: Passes = "default",
    backend: BackendName = "reference",
    calibration: Calibration = None,
    text_field: TextField = "text",
    chat_fields: ChatFields = None,
    samples: Samples = None,
    length: Length = None,
    states: States = "bf16",
    host_memory: HostMemory = None,
    device: Device = "cpu",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Predict sizes, memory and time of a compile.

    \b
    Examples:
      qdc plan MODEL
      qdc plan MODEL --passes best --samples 64 --length 2048 --json
      qdc plan MODEL --host-memory 8G --device cpu
    """  # noqa: D301
    from qdc.cli.plan import plan_command
    from qdc.text.records import Fields

    plan_command(
        model=model,
        passes=passes,
        backend=backend,
        calibration=calibration,
        fields=Fields.parse(text_field, chat_fields),
        overrides={"samples": samples, "length": length},
        states=states,
        host_memory=host_memory,
        device=device,
        plugins=plugin or [],
        as_json=json,
    )


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="IR dump, its text, artifact or model folder")
    ],
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Nodes, as in 'blocks.0.*'")] = "*",
    tags: Annotated[
        str | None, typer.Option(metavar="TAGS", help="Just these annotations, as in orders,packed")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every fact: a text that can be read back")
    ] = False,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Print the IR of a dump, an artifact or a model.

    \b
    Examples:
      qdc show out --only 'blocks.0.*' --tags orders,packed
      qdc show out --full > ir.txt
      diff <(qdc show d/02_sensitivity.qdc) <(qdc show d/03_abmp-allocate.qdc)
    """  # noqa: D301
    from qdc.cli.show import show_command

    wanted = [tag.strip().lstrip("@") for tag in tags.split(",")] if tags else None
    show_command(path, only, wanted, plugin or [], full=full, as_json=json)


@app.command()
def opt(
    dump: Annotated[
        Path,
        typer.Argument(metavar="DUMP", help="IR dump, its text, or artifact; - reads stdin"),
    ],
    passes: Annotated[str, typer.Option(metavar="TEXT", help="Pass{option=value},...")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="A dump if it ends in .qdc, else a text"),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every fact: a text that can be read back")
    ] = False,
    remarks: Annotated[
        bool, typer.Option("--remarks", help="What passes say of each layer, on stderr")
    ] = False,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Run passes that need no weights on a dump.

    \b
    Examples:
      qdc opt d/02_sensitivity.qdc --passes 'abmp-allocate{ratio=0.1}'
      qdc show d/05_measure-orders.qdc --full | qdc opt - --passes allocate
      qdc opt d/02_sensitivity.qdc --passes mine --plugin my_pass.py -o x.txt
    """  # noqa: D301
    from qdc.cli.opt import opt_command

    opt_command(dump, passes, out, plugin or [], full=full, remarks=remarks, as_json=json)


@app.command()
def passes(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Describe just these")
    ] = None,
    provides: Annotated[
        str | None, typer.Option(metavar="TAG", help="Passes that write this annotation")
    ] = None,
    plugin: Plugins = None,
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
def backends(plugin: Plugins = None, json: Json = False) -> None:
    """List the backends that write artifacts.

    \b
    Examples:
      qdc backends
      qdc backends --plugin my_backend.py --json
    """  # noqa: D301
    from qdc.cli.lists import backends_command

    backends_command(plugin or [], json)


@app.command()
def families(plugin: Plugins = None, json: Json = False) -> None:
    """List the model families, and what was proved of each.

    \b
    Examples:
      qdc families
      qdc families --plugin my_family.py --json
    """  # noqa: D301
    from qdc.cli.families import families_command

    families_command(plugin or [], json)


@app.command()
def run(
    model: Runnable,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Text with <mask> gaps; - reads stdin")
    ],
    gap: Annotated[int, typer.Option(metavar="N", help="Tokens of each gap")] = 1,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Forwards [default: one a token]")
    ] = None,
    device: Device = "cpu",
    backend: RunBackend = "reference",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Fill the gaps of a text.

    \b
    Examples:
      qdc run out "for i in <mask>(10):"
      qdc run out "def read(path):<mask>" --gap 12
    """  # noqa: D301
    from qdc.cli.run import run_command

    run_command(model, text, gap, steps, device, backend, plugin or [], json)
