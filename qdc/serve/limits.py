"""What a server takes from the network, and how long it waits."""

from pydantic import Field

from qdc.ir.types import Frozen


class Limits(Frozen):
    """Bounds on requests; whoever exceeds one is refused, nothing is cut silently."""

    max_body: int = Field(default=256 << 10, ge=1)
    """Bytes of a request's body."""
    max_length: int = Field(ge=1)
    """Tokens of a prompt and its answer."""
    queue: int = Field(default=256, ge=1)
    """Requests that may wait."""
    batch: int = Field(default=8, ge=1)
    """Requests that are decoded at once."""
    connections: int = Field(default=1024, ge=1)
    """Connections that may be open at a time."""
    patience: float = Field(default=30, gt=0)
    """Seconds for the head of a request, for its body, and for a client that does not read."""
    grace: float = Field(default=30, ge=0)
    """Seconds that running requests get when the server is told to stop."""
    hosts: tuple[str, ...] = ()
    """Names that the ``Host`` header may hold besides ``localhost`` and addresses; ``*`` is any."""
