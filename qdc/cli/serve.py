"""``qdc serve``: load a model and answer requests over HTTP."""

import os
import sys
from collections.abc import Sequence

from qdc.cli.models import open_runnable
from qdc.cli.terminal import print_json
from qdc.errors import QdcError
from qdc.runtime.decoding.fill import fill
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Decoded, Watch
from qdc.runtime.decoding.strategies import make_strategy, needs_verifier
from qdc.runtime.decoding.verifier import load_verifier
from qdc.version import install

try:
    from qdc.serve.app import Service, make_app
    from qdc.serve.clients import Keys, read_keys
    from qdc.serve.engine import Engine, Gaps
    from qdc.serve.limits import ServeOptions
    from qdc.serve.server import bind, serve, url
    from qdc.serve.wording import Wording
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "h11"):
        raise
    raise QdcError(
        f"qdc serve needs {error.name}, which is not installed",
        help=install("serve"),
    ) from error


def serve_command(asked: ServeOptions, *, as_json: bool) -> None:
    """Take the port, load, serve until a signal."""
    keys = Keys(read_keys(asked.api_keys, asked.api_key_file, os.environ))
    with bind(asked.host, asked.port) as taken:
        opened = open_runnable(
            asked.model,
            asked.device,
            asked.plugins,
            asked.backend,
            asked.document_tokens,
            verify=asked.verify,
        )
        bounds, verifier = asked.limits(opened.decoding.max_length), asked.verifier
        checks = (
            None
            if verifier is None
            else load_verifier(verifier, opened.device, opened.tokenizer, opened.facts.vocabulary)
        )

        def run(
            prompts: Sequence[Sequence[int]],
            gaps: Gaps,
            options: DecodeOptions,
            seeds: Sequence[int],
            watch: Watch,
        ) -> Decoded:
            if gaps is not None:
                return fill(
                    opened.module, prompts, gaps, options, opened.decoding, watch, seeds,
                    opened.strategies,
                )  # fmt: skip
            asked = needs_verifier(type(make_strategy(options, opened.strategies)))
            return decode(
                opened.module, prompts, options, opened.decoding, watch,
                checks if asked else None, seeds, opened.strategies,
            )  # fmt: skip

        title = asked.name or asked.model.resolve().name
        remedy = (
            f"qdc verify tells whether the artifact {title} is damaged"
            if opened.compiled
            else f"check the weights of {title} for overflow"
        )
        engine = Engine(run, bounds, remedy)
        service = Service(
            title,
            engine,
            Wording(opened.tokenizer, opened.encode),
            opened.decoding,
            bounds,
            checks is not None,
            opened.compiled,
            keys,
            opened.strategies,
        )
        address = url(taken)

        def ready() -> None:
            if as_json:
                print_json({"url": address, "model": title})
                sys.stdout.flush()
                return
            sys.stderr.write(f"serving {title} at {address} (Ctrl-C stops)\n")
            if not keys and not _is_local(taken.getsockname()[0]):
                sys.stderr.write("whoever reaches this port may use it: there is no --api-key\n")
            sys.stderr.flush()

        serve(make_app(service), engine, taken, bounds, ready)


def _is_local(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
