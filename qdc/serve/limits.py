"""What a server takes from the network, how long it waits, and where it listens."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from qdc.errors import QdcError
from qdc.options import Options, as_list, option
from qdc.runtime.options import AUTO, Device, Plugins, RunBackend, Verify
from qdc.text.options import AroundTexts
from qdc.units import parse_size


def _body(given: Any) -> Any:
    found = parse_size(str(given), "--max-body")
    if found < 1:
        raise QdcError(f"--max-body {given} lets no request in", help="give a size, as in 1M")
    return found


class _Bounds(Options):
    """What does not depend on the model."""

    hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list),
        option(
            "NAME",
            "Also answer under this name; * is any",
            "--allow-host",
            more="What the Host header may hold besides localhost and addresses",
            repeated=True,
        ),
    ] = ()
    max_body: Annotated[
        int,
        BeforeValidator(_body),
        option("SIZE", "Of a request, as in 512K or 1M", verbatim=True, shown="256K"),
    ] = 256 << 10
    queue: Annotated[int, Field(ge=1), option("N", "Requests that may wait", ranged=True)] = 256
    client_queue: Annotated[
        int,
        Field(ge=1),
        option(
            "N",
            "Of those, of one client",
            more="A client is a key, where the server has several, or an address",
            ranged=True,
        ),
    ] = 64
    batch: Annotated[int, Field(ge=1), option("N", "Decoded at once", ranged=True)] = 8
    connections: Annotated[int, Field(ge=1), option("N", "Open at once", ranged=True)] = 1024
    patience: Annotated[
        float,
        Field(ge=0.1),
        option(
            "S",
            "For clients that send or read slowly",
            "--timeout",
            more="For the head of a request, for its body, and for each piece of an answer",
            ranged=True,
        ),
    ] = 30
    grace: Annotated[
        float,
        Field(ge=0),
        option("S", "For running requests when told to stop", ranged=True),
    ] = 30


class Limits(_Bounds):
    """Bounds on requests; whoever exceeds one is refused, nothing is cut silently."""

    max_length: int = Field(ge=1, description="Tokens of a prompt and its answer")


class ServeOptions(_Bounds):
    """Everything that a user says of a server."""

    refusal: ClassVar[str] = "a server cannot be asked for that"
    manual: ClassVar[str] = "qdc serve --help names the options"

    model: Annotated[Path, option("MODEL", "Artifact or model folder", argument=True)]
    host: Annotated[str, option("NAME", "Where to listen", before="hosts")] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        option("N", "0 finds one", ranged=True, before="hosts"),
    ] = 8000
    name: Annotated[
        str | None,
        option("NAME", "Of the model [default: the folder's]", before="hosts"),
    ] = None
    api_keys: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list),
        option(
            "KEY",
            "Ask for this key, or another one given",
            "--api-key",
            more="As Authorization: Bearer KEY. All processes of the machine see it here; in a "
            "file, or in the variable QDC_API_KEY, they do not",
            repeated=True,
            before="max_body",
        ),
    ] = ()
    api_key_file: Annotated[
        Path | None, option("FILE", "Of keys, one a line", before="max_body")
    ] = None
    max_length: Annotated[
        int | None,
        Field(ge=1),
        option("N", "Tokens of prompt and answer", ranged=True, before="max_body"),
    ] = None
    verifier: Annotated[Path | None, option("FOLDER", "Autoregressive model, for apd")] = None
    document_tokens: AroundTexts = "auto"
    device: Device = "cpu"
    backend: RunBackend = AUTO
    plugins: Plugins = ()
    verify: Verify = True

    def limits(self, longest: int) -> Limits:
        """Bounds for a model that takes ``longest`` tokens. Raises ``QdcError`` beyond those."""
        wanted = longest if self.max_length is None else self.max_length
        if wanted > longest:
            raise QdcError(
                f"--max-length {wanted} is more than the model takes, {longest}",
                help="leave --max-length out",
            )
        bounds = {name: getattr(self, name) for name in _Bounds.model_fields}
        return Limits.parse(**bounds, max_length=wanted)
