"""``qdc serve`` and its options; nothing here imports torch."""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.options import Device, Json, Plugins, RunBackend, Runnable, app


@app.command()
def serve(
    model: Runnable,
    host: Annotated[str, typer.Option(metavar="NAME", help="Where to listen")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 finds one")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the model [default: the folder's]")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also answer under this name; * is any"),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens of prompt and answer")
    ] = None,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Of a request, as in 512K or 1M")
    ] = "256K",
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that may wait")] = 256,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Decoded at once")] = 8,
    connections: Annotated[int, typer.Option(metavar="N", min=1, help="Open at once")] = 1024,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="For clients that send or read slowly")
    ] = 30,
    grace: Annotated[
        float, typer.Option(metavar="S", min=0, help="For running requests when told to stop")
    ] = 30,
    verifier: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Autoregressive model, for apd")
    ] = None,
    device: Device = "cpu",
    backend: RunBackend = "reference",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Serve OpenAI's protocol and a page.

    It listens on this machine alone, until SIGINT or SIGTERM. With --json the address is printed
    as JSON.

    \b
    Examples:
      qdc serve out
      qdc serve out --port 0 --batch 16 --json
      qdc serve out --host 0.0.0.0 --allow-host models.example
    """  # noqa: D301
    from qdc.cli.serve import serve_command

    limits = {
        "max_length": max_length,
        "max_body": max_body,
        "queue": queue,
        "batch": batch,
        "connections": connections,
        "patience": timeout,
        "grace": grace,
        "hosts": tuple(allow_host or ()),
    }
    serve_command(model, host, port, name, limits, verifier, device, backend, plugin or [], json)
