"""A quantizer of a third party is one file: its codec, its annotation, its pass."""

import json
from pathlib import Path

import pytest
import torch

import qdc
from qdc.errors import InvalidArtifact
from qdc.pipeline.registry import standard_registry
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny

SOURCE = '''
"""Keep the sign of each weight, and one scale a row."""

from typing import ClassVar

import torch

from qdc.passkit import Codec, Field, Lowered, Pass, Tensor, Tensors, Unit, ValueType
from qdc.passkit import pack_signs, unpack_signs


class RowSigns(Codec):
    """W = scale * sign."""

    name: ClassVar[str] = "row-signs"
    signs: ClassVar[bool] = True

    @property
    def payload_bits(self) -> int:
        return self.rows * self.columns

    def specification(self) -> dict[str, ValueType]:
        return {
            "signs": ValueType(dtype="u8", shape=(self.rows, -(-self.columns // 8))),
            "scale": ValueType(dtype="f16", shape=(self.rows,)),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        return {**working, "signs": pack_signs(working["signs"])}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        return {**stored, "signs": unpack_signs(stored["signs"], self.columns)}

    def dense(self, working: Tensors) -> Tensor:
        return working["scale"].float()[:, None] * working["signs"]


class Signed(Lowered):
    tag: ClassVar[str] = "signed"
    codec: RowSigns

    def text(self) -> str:
        return "one sign a weight"


class SignLower(Pass):
    """Keep the sign of each weight, and one scale a row."""

    name: ClassVar[str] = "sign-lower"
    provides: ClassVar[tuple[type[Signed], ...]] = (Signed,)

    gain: float = Field(default=1.0, gt=0, description="factor of all scales")

    def run(self, unit: Unit) -> None:
        for node in unit.layers():
            weight = unit.weight(node)
            signs = torch.where(weight >= 0, 1, -1).to(torch.int8)
            scale = (self.gain * weight.abs().mean(dim=1)).half()
            unit.annotate(
                node,
                Signed(
                    codec=RowSigns(rows=node.rows, columns=node.columns),
                    tensors=(unit.put(f"{node.name}:signs", signs),
                             unit.put(f"{node.name}:scale", scale)),
                    suffixes=("signs", "scale"),
                ),
            )
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin") / "model"
    return write_checkpoint(folder, d_model=36, mlp_hidden_size=48, dtype=torch.float32)


@pytest.fixture(scope="module")
def plugin(model: Path) -> Path:
    path = model.with_name("sign_lower.py")
    path.write_text(SOURCE)
    return path


def test_it_compiles_and_loads_without_a_change_elsewhere(
    model: Path, plugin: Path, tmp_path: Path
) -> None:
    report = compile_tiny(
        model, tmp_path / "out", "sign-lower{gain=0.5},pack", plugins=[plugin], dump_after=["all"]
    )
    assert report.sign_bits == 1
    assert report.bits_word == "sign bits"
    assert {layer.codec for layer in report.layers} == {"row-signs"}
    assert report.plugins[0].startswith("sign_lower.py sha256:")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["plugins"] == list(report.plugins)
    loaded = qdc.load(tmp_path / "out", plugins=[plugin], backend="reference")
    original = qdc.load_original(model)
    name = "model.transformer.blocks.1.up_proj.weight"
    weight = original.get_parameter(name)
    scale = (0.5 * weight.abs().mean(dim=1, keepdim=True)).half().float()
    assert torch.equal(loaded.get_parameter(name), scale * weight.sign())
    assert "@signed    one sign a weight" in (tmp_path / "out-dumps" / "02_pack.txt").read_text()


def test_the_plugin_is_needed_to_load(model: Path, plugin: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "out", "sign-lower,pack", plugins=[plugin])
    with pytest.raises(InvalidArtifact, match="no codec is called 'row-signs'") as caught:
        qdc.load(tmp_path / "out", backend="reference")
    assert "load the plugin that wrote it with --plugin" in caught.value.help
    assert caught.value.where == ("model.transformer.blocks.0.q_proj",)


def test_it_works_on_the_calibrated_stream(model: Path, plugin: Path, tmp_path: Path) -> None:
    report = compile_tiny(
        model,
        tmp_path / "out",
        "stages(calibrate-mcs,sensitivity,sign-lower),pack",
        plugins=[plugin],
    )
    assert report.layer_forwards <= 1.01
    assert "row-signs" in standard_registry([plugin]).codecs()
