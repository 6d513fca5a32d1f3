"""The example backend gives the logits of the reference from packed weights alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

import qdc
from qdc.errors import UnsupportedModel
from qdc.format.multibinary import MultiBinary
from qdc.pipeline.registry import standard_registry
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.natives import write_native
from tests.support.packed import MIXED

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
BACKEND, QUANTIZER = PLUGINS / "on_the_fly.py", PLUGINS / "ternary_lower.py"
TOKENS = torch.arange(40).reshape(2, 20)


def held(module: nn.Module) -> int:
    """Bytes of all tensors, each counted once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


def written(architecture: str, folder: Path) -> Path:
    """LLaDA has a head of its own; that of Qwen2 is tied here, and its linears have biases."""
    return write_checkpoint(folder) if architecture == "llada" else write_native(folder, "qwen2")


@pytest.mark.parametrize("architecture", ["llada", "qwen2"])
def test_the_logits_are_those_of_the_reference(architecture: str, tmp_path: Path) -> None:
    """Planes of several orders, an embedding and a head of codes."""
    model = written(architecture, tmp_path / "m")
    report = compile_tiny(
        model, tmp_path / "out", MIXED, backend="on-the-fly", plugins=[BACKEND], write_report=False
    )
    plain = qdc.load(tmp_path / "out", backend="reference")
    packed = qdc.load(tmp_path / "out", backend="on-the-fly", plugins=[BACKEND])
    assert torch.equal(packed(TOKENS), plain(TOKENS))
    assert held(packed) < 0.5 * held(plain)
    quantized = len(report.layers) + len(report.outside) + (architecture == "qwen2")
    assert sum(type(part).__name__ == "PackedModule" for part in packed.modules()) == quantized
    assert not any(type(part) in (nn.Linear, nn.Embedding) for part in packed.modules())


def test_it_runs_the_codec_of_another_plugin(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", d_model=36)
    passes = "stages(calibrate-mcs,sensitivity,ternary-lower{group=16 rounds=0}),pack"
    compile_tiny(model, tmp_path / "out", passes, plugins=[QUANTIZER])
    plain = qdc.load(tmp_path / "out", plugins=[QUANTIZER], backend="reference")
    packed = qdc.load(tmp_path / "out", backend="on-the-fly", plugins=[BACKEND, QUANTIZER])
    assert torch.equal(packed(TOKENS), plain(TOKENS))


def test_other_modules_are_refused_before_anything_is_read() -> None:
    runtime = (
        standard_registry([BACKEND]).find_backend("on-the-fly")().runtime(torch.device("cpu"), None)
    )
    module = nn.ModuleDict({"norm": nn.LayerNorm(8), "linear": nn.Linear(8, 8)})
    codec = MultiBinary(rows=8, columns=8, orders=(1,))
    runtime.check(module, {"linear": codec})
    with pytest.raises(UnsupportedModel) as caught:
        runtime.check(module, {"linear": codec, "norm": codec})
    assert caught.value.where == ("norm: LayerNorm",)
