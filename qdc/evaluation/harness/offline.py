"""Keep Hugging Face's libraries from the network."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
LIBRARIES, CONSTANT = ("huggingface_hub.constants", "datasets.config"), "HF_HUB_OFFLINE"
HUB = "https://huggingface.co"
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def switched_off(off: bool) -> Iterator[None]:
    """Within it nothing is fetched, where ``off``; what was cached before is still found.

    The switches are environment variables, which the libraries read once; where they have been
    imported already, their own constant is set too.
    """
    if not off:
        yield
        return
    before = {name: os.environ.get(name) for name in SWITCHES}
    constants = {name: getattr(sys.modules.get(name), CONSTANT, False) for name in LIBRARIES}
    os.environ.update(dict.fromkeys(SWITCHES, "1"))
    _set(dict.fromkeys(LIBRARIES, True))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # A library that was first imported within has read the switch and must forget it.
        _set(constants)


def _set(values: Mapping[str, bool]) -> None:
    for name, value in values.items():
        if name in sys.modules:
            setattr(sys.modules[name], CONSTANT, value)


def hub_is_out_of_reach() -> bool:
    """Whether the hub's name cannot be resolved; libraries would retry for half a minute."""
    if any(os.environ.get(name) for name in PROXIES):
        return False
    host = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return True
    return False
