"""The ``Host`` of a request, and of an origin: a name or an address, and a port.

Source: RFC 9110 section 7.2, RFC 3986 section 3.2.2. Of what is allowed there, no client of HTTP
sends escapes, zones of addresses or a colon without a port; they are refused with the rest.
"""

import ipaddress
import re
from typing import NamedTuple

_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_.])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
LONGEST_NAME = 253
LAST_PORT = 65535


class Place(NamedTuple):
    """Where a request goes."""

    name: str
    """Small letters; an address of IPv6 without its brackets."""
    port: int | None

    @property
    def is_address(self) -> bool:
        """Whether no name server has a say in it."""
        return _address(self.name) is not None


def parse_place(text: str) -> Place | None:
    """Read ``name:port``, ``1.2.3.4:port`` or ``[::1]:port``; None for what is none of these."""
    name, colon, port = text.lower().rpartition(":")
    if not colon or text.endswith("]"):
        name, colon, port = text.lower(), "", ""
    if colon and not (_PORT.fullmatch(port) and 0 < int(port) <= LAST_PORT):
        return None
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
        address = None if "%" in name else _address(name)
        if not isinstance(address, ipaddress.IPv6Address):
            return None
        return Place(str(address), int(port) if colon else None)
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name) or ".." in name:
        return None
    return Place(name, int(port) if colon else None)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
