"""Who asks: whose key a request has, and as whose it is queued."""

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from qdc.disk import read_regular
from qdc.errors import QdcError

VARIABLE = "QDC_API_KEY"
"""Of the environment: one more key."""
LARGEST_FILE = 1 << 20
"""Bytes of a file of keys."""
HOME = 64
"""Bits of an IPv6 address that name a network: whoever has one has all addresses in it."""


class Keys:
    """The keys that a server takes; only their digests are kept."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Take any of these; with none, everybody is let in."""
        self._digests = sorted({sha256(key.encode()).digest() for key in keys})

    def __bool__(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """Which key a header ``Authorization`` holds, as a name; None if it holds none of them.

        All digests are compared, each in constant time, so that the time tells nothing of a key.
        """
        scheme, _, token = (authorization or "").partition(" ")
        given = sha256(token.strip(" ").encode("latin-1")).digest()
        found = None
        for number, digest in enumerate(self._digests):
            if hmac.compare_digest(digest, given):
                found = f"key {number}"
        return found if scheme.lower() == "bearer" else None

    def client(self, owner: str | None, address: str) -> str:
        """As whose a request is queued.

        By its key where there are several; a key that all share tells nobody apart, and then, as
        without keys, it is the address.
        """
        return owner if owner is not None and len(self._digests) > 1 else network(address)


def network(address: str) -> str:
    """The address, or of IPv6 its network."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), HOME), strict=False))


def read_keys(
    given: Sequence[str], file: Path | None, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """The keys of the options, of a file and of the variable ``QDC_API_KEY``, in this order.

    Raises ``QdcError`` for a key that no header can hold, and for a file or a variable without one:
    whoever names it counts on being protected. No message repeats a key.
    """
    found = [("--api-key", key) for key in given]
    if file is not None:
        found += [(str(file), key) for key in _lines(file)]
    if VARIABLE in environment:
        found.append((VARIABLE, environment[VARIABLE]))
    for place, key in found:
        if not key or not all("!" <= letter <= "~" for letter in key):
            raise QdcError(
                "a key is empty, or has characters other than letters, digits and signs of ASCII",
                where=[place],
                help="python -c 'import secrets; print(secrets.token_urlsafe())' makes a good one",
            )
    return tuple(key for _, key in found)


def _lines(file: Path) -> list[str]:
    try:
        text = read_regular(file, LARGEST_FILE).decode("utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise QdcError(f"the keys cannot be read: {reason}", where=[str(file)]) from error
    except UnicodeDecodeError as error:
        raise QdcError("the keys are not UTF-8", where=[str(file)]) from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise QdcError("the file holds no key", where=[str(file)], help="write one a line")
    return found
