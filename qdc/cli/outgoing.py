"""The command that hands a model to other tools: export. As in ``app``, no torch here."""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.options import Json, Plugins, app


@app.command()
def export(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Folder that qdc compile wrote")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Folder to write")],
    format: Annotated[
        str, typer.Option(metavar="NAME", help="dense: an ordinary checkpoint")
    ] = "dense",
    dtype: Annotated[str, typer.Option(metavar="NAME", help="Of all tensors: bf16, f16, f32")] = (
        "bf16"
    ),
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Prove that tensors and logits are the artifact's"),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an artifact or an export at OUT")
    ] = False,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Write an artifact as a checkpoint that needs no qdc.

    Weights are decoded shard by shard, under the key names of the checkpoint. They take as many
    bytes as the checkpoint did: what is gained is that other engines load them.

    \b
    Examples:
      qdc export out -o dense --verify
      qdc export out -o dense --dtype f32 --force --json
    """  # noqa: D301
    from qdc.cli.export import export_command

    export_command(
        artifact=artifact,
        out=out,
        format=format,
        dtype=dtype,
        verify=verify,
        force=force,
        plugins=plugin or [],
        as_json=json,
    )
