"""What all tests share: expected texts on disk, repeatable random examples, tests for a GPU."""

import difflib
import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# First of all: whoever imports triton before has its kernels compiled, never interpreted.
import tests.support.interpreter  # noqa: F401

TESTS = Path(__file__).parent
IN_CI = bool(os.environ.get("CI"))

hypothesis.settings.register_profile("qdc", deadline=None, derandomize=IN_CI)
hypothesis.settings.load_profile("qdc")

# On a crowded machine a short command takes the half minute after which it says how far it is;
# the tests of just that turn it on again.
os.environ.setdefault("QDC_PROGRESS", "off")

# A shell that starts the tests in the background has them ignore Ctrl-C, and all processes that
# they start; tests of signals need what people have.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Golden:
    """The expected text of one test, kept in ``tests/golden``."""

    def __init__(self, path: Path, *, update: bool) -> None:
        self.path = path
        self.update = update

    def of(self, path: Path) -> "Golden":
        """The same for the text of another file."""
        return Golden(path, update=self.update)

    def __call__(self, text: str) -> None:
        """Fail with a diff unless ``text`` is what the file holds; with ``update``, write it."""
        text = text.rstrip("\n") + "\n"
        if self.update:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text, encoding="utf-8")
            return
        name = f"tests/{self.path.relative_to(TESTS).as_posix()}"
        if not self.path.exists():
            pytest.fail(f"{name} does not exist; write it with: make golden", pytrace=False)
        expected = self.path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), name, "this run", lineterm=""
            )
            pytest.fail("\n".join([*lines, "", "accept it with: make golden"]), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def quick_disk() -> Iterator[None]:
    """Leave out fsync: it outlives a power failure, tests kill processes alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_text() -> Iterator[None]:
    """Tokenize a text once for each tokenizer: most compiles read the embedded text with one."""
    from qdc.text import joined
    from qdc.text.tokenizer import Encoder

    tokenize, known = joined._tokenized, dict[object, Any]()

    def remembered(documents: tuple[str, ...], encode: joined.Encode) -> Any:
        if not isinstance(encode, Encoder):
            return tokenize(documents, encode)
        described = encode.tokenizer.backend_tokenizer.to_str()
        key = (documents, described, joined.separators(encode))
        if key not in known:
            known[key] = tokenize(documents, encode)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined, "_tokenized", remembered)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_registry() -> Iterator[None]:
    """Look for installed plugins once in each place: every load and every compile does."""

    @cache
    def found(group: str, places: tuple[str, ...]) -> EntryPoints:
        return entry_points(group=group)

    with pytest.MonkeyPatch.context() as patch:
        looked = "qdc.pipeline.registry.entry_points"
        patch.setattr(looked, lambda *, group: found(group, tuple(sys.path)))
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with ``tests/golden/<module>.<test>.txt``; once a test."""
    folder, module = request.path.relative_to(TESTS).parent, request.path.stem
    parts = (*folder.parts, module.removeprefix("test_"), request.node.name.removeprefix("test_"))
    file_name = re.sub(r"[^\w.]+", "-", ".".join(parts)).strip("-") + ".txt"
    return Golden(
        TESTS / "golden" / file_name, update=bool(request.config.getoption("update_golden"))
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="run only the tests with an expected text, and rewrite those texts",
    )


def pytest_configure(config: pytest.Config) -> None:
    if IN_CI and config.getoption("update_golden"):
        raise pytest.UsageError("--update-golden is for people: CI compares, it never rewrites")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("update_golden"):
        return
    others = [item for item in items if "golden" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
