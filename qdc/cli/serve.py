"""``qdc serve``: load a model and answer requests over HTTP."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdc.cli.models import open_runnable
from qdc.cli.terminal import print_json
from qdc.errors import QdcError
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Decoded, Watch
from qdc.runtime.decoding.verifier import load_verifier
from qdc.units import parse_size

try:
    from qdc.serve.app import Service, make_app
    from qdc.serve.engine import Engine
    from qdc.serve.limits import Limits
    from qdc.serve.server import bind, serve, url
    from qdc.serve.wording import Wording
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "h11"):
        raise
    raise QdcError(
        f"qdc serve needs {error.name}, which is not installed",
        help="pip install 'qdc[serve]'",
    ) from error


def serve_command(
    model: Path,
    host: str,
    port: int,
    name: str | None,
    limits: Mapping[str, Any],
    verifier: Path | None,
    device: str,
    backend: str,
    plugins: Sequence[Path],
    as_json: bool,
) -> None:
    """Take the port, load, serve until a signal."""
    body = parse_size(limits["max_body"], "--max-body")
    if body < 1:
        raise QdcError("--max-body 0 lets no request in", help="give a size, as in 1M")
    with bind(host, port) as taken:
        opened = open_runnable(model, device, plugins, backend)
        longest = opened.decoding.max_length
        wanted = limits["max_length"] or longest
        if wanted > longest:
            raise QdcError(
                f"--max-length {wanted} is more than the model takes, {longest}",
                help="leave --max-length out",
            )
        checks = (
            None
            if verifier is None
            else load_verifier(verifier, opened.device, opened.tokenizer, opened.facts.vocabulary)
        )

        def run(
            prompts: Sequence[Sequence[int]],
            options: DecodeOptions,
            seeds: Sequence[int],
            watch: Watch,
        ) -> Decoded:
            judge = checks if options.strategy == "apd" else None
            return decode(opened.module, prompts, options, opened.decoding, watch, judge, seeds)

        bounds = Limits.model_validate({**limits, "max_body": body, "max_length": wanted})
        title = name or model.resolve().name
        engine = Engine(run, bounds)
        service = Service(
            title,
            engine,
            Wording(opened.tokenizer),
            opened.decoding,
            bounds,
            checks is not None,
            opened.compiled,
        )
        address = url(taken)

        def ready() -> None:
            if as_json:
                print_json({"url": address, "model": title})
                sys.stdout.flush()
                return
            sys.stderr.write(f"serving {title} at {address} (Ctrl-C stops)\n")
            if not _is_local(taken.getsockname()[0]):
                sys.stderr.write("whoever reaches this port may use it: there is no password\n")
            sys.stderr.flush()

        serve(make_app(service), engine, taken, bounds, ready)


def _is_local(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
