"""GGUF files of plain checkpoints, and llama.cpp to read them with, where it is installed."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdc.checkpoint.folder import Checkpoint
from qdc.gguf.names import naming
from qdc.gguf.vocabulary import read_vocabulary
from qdc.gguf.writing import Decoded, Written, write_gguf
from qdc.models.families import BUILT_IN
from qdc.runtime.weights import StoredWeights
from tests.conftest import TESTS

EXAMPLES = TESTS.parent / "examples"
needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the extra gguf is not installed"
)
needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp (xllamacpp) is not installed"
)


def write_plain(
    folder: Path, path: Path, dense: Decoded = "F16", pre: str | None = None
) -> Written:
    """Write an uncompiled checkpoint as a GGUF file."""
    source = Checkpoint(folder)
    model = naming(source.config, BUILT_IN)
    vocabulary = read_vocabulary(folder, model, pre)
    weights = StoredWeights({}, source=source)
    return write_gguf(path, model, source, weights, vocabulary, name="plain", dense=dense)


def example(name: str) -> Any:
    """A script of ``examples/`` as a module."""
    # A script imports its neighbours by their bare names.
    if name == "llamacpp_generate":
        example("llamacpp")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def engine(path: Path, length: int = 256) -> Any:
    """llama.cpp with a file loaded."""
    return example("llamacpp").Engine(path, length)


def apart(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Difference of two logits ``f32[tokens, vocabulary]``, relative to their spread."""
    spread = expected - expected.mean(axis=-1, keepdims=True)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(spread))
