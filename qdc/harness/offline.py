"""Keep Hugging Face's libraries from the network."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
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
    os.environ.update(dict.fromkeys(SWITCHES, "1"))
    loaded = sys.modules.get("huggingface_hub.constants")
    constant = getattr(loaded, "HF_HUB_OFFLINE", None)
    if loaded is not None:
        loaded.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # A library that was first imported within has read the switch and must forget it.
        loaded = sys.modules.get("huggingface_hub.constants")
        if loaded is not None:
            loaded.HF_HUB_OFFLINE = bool(constant)  # type: ignore[attr-defined]


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
