"""One server for the whole run: the embedded model, with little patience and small limits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from bench.requests.kinds import KEYS, MOST_BODY
from bench.requests.server import make
from qdc.cli.models import Opened, open_runnable
from tests.support.checkpoints import EMBEDDED
from tests.support.commands import environment
from tests.support.threads import one_thread

__all__ = ["one_thread"]

PATIENCE = 1.0
MAX_BODY = 64 << 10


@dataclass(frozen=True)
class Served:
    """A running ``qdc serve``."""

    url: str
    model: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@contextmanager
def running(folder: Path, *options: object, **variables: str) -> Iterator[Served]:
    """Start a server on a free port; it must end with 0 and without a traceback."""
    command = [sys.executable, "-m", "qdc", "serve", folder, "--port", 0, "--json", *options]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment(), **variables},
    )  # fmt: skip
    assert process.stdout is not None
    lines = ""
    while not lines.endswith("}\n"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        lines += line
    try:
        yield Served(**json.loads(lines), process=process)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    options = ("--batch", 32, "--timeout", PATIENCE, "--max-body", MAX_BODY, "--client-queue", 256)
    with running(EMBEDDED, *options) as served:
        yield served


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with keys from each place, those of the bench among them; one request at a time.

    It has an artifact that gives NaN for prompts with the token ``HOT`` of the bench.
    """
    folder = tmp_path_factory.mktemp("keys")
    hot, keys = make(folder), folder / "keys"
    keys.write_text("\nof-a-file\r\n  second \n\n" + "\n".join(KEYS), encoding="utf-8")
    options = ("--batch", 1, "--max-body", MOST_BODY, "--api-key", "of-a-line")
    variables = {"QDC_API_KEY": "of-a-variable"}
    with running(hot, *options, "--api-key-file", keys, **variables) as served:
        yield served


@pytest.fixture(scope="session")
def opened() -> Opened:
    """The same model in this process."""
    return open_runnable(EMBEDDED, "cpu", [])
