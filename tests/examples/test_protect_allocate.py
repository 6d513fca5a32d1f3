"""The example pass keeps its promises, through ``--plugin`` and as an installed entry point."""

import json
import runpy
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qdc
from qdc.cli import run
from qdc.errors import QdcError
from qdc.pipeline.syntax import parse_item
from tests.support.checkpoints import write_checkpoint
from tests.support.commands import qdc as command
from tests.support.units import layers

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "protect_allocate.py"
PASSES = (
    "stages(calibrate-mcs,sensitivity,protect-allocate{{layers={0}}},daq-lower{{sweeps=0}}),pack"
)
PROTECT = runpy.run_path(str(EXAMPLE))["ProtectAllocate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), d_model=128, mlp_hidden_size=264)


def test_runs_through_plugin_on_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = run(
        ["compile", str(model), "-o", str(out), "--plugin", str(EXAMPLE),
         "--passes", PASSES.format("*.attn_out"), "--samples", "4", "--length", "16", "--json"]
    )  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    orders = {layer["name"]: layer["orders"] for layer in report["layers"]}
    for name, blocks in orders.items():
        assert (set(blocks) == {3}) == name.endswith("attn_out")
    assert 1.9 < report["sign_bits"]["value"] <= 2
    assert report["plugins"][0].startswith("protect_allocate.py sha256:")
    assert qdc.load(out, backend="reference")(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


@pytest.mark.slow
def test_runs_as_an_installed_entry_point(model: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "protect-1.0.dist-info").mkdir(parents=True)
    (site / "protect_layers.py").write_bytes(EXAMPLE.read_bytes())
    (site / "protect-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: protect\nVersion: 1.0\n"
    )
    (site / "protect-1.0.dist-info" / "entry_points.txt").write_text(
        "[qdc.passes]\nprotect-allocate = protect_layers:ProtectAllocate\n"
    )
    listed = command("passes", "--provides", "orders", "--json", paths=(site,))
    names = [entry["name"] for entry in json.loads(listed.stdout)["passes"]]
    assert names[-1] == "protect-allocate"
    assert "abmp-allocate" in names

    out = tmp_path / "out"
    found = command(
        "compile", model, "-o", out, "--passes", PASSES.format("*.1.ff_out"),
        "--samples", 4, "--length", 16, paths=(site,),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "protect-allocate{layers=*.1.ff_out}" in config["pipeline"]
    assert config["layers"]["model.transformer.blocks.1.ff_out"]["orders"] == [3, 3, 3]
    assert config["plugins"] == []


def test_layers_of_one_stage_stay_fusible(model: Path, tmp_path: Path) -> None:
    report = qdc.compile(
        model,
        PASSES.format("*.q_proj"),
        out=tmp_path / "out",
        plugins=[EXAMPLE],
        samples=4,
        length=16,
    )
    orders = {layer.name: layer.orders for layer in report.layers}
    for region in ("blocks.0", "blocks.1"):
        assert orders[f"{region}.q_proj"] == orders[f"{region}.k_proj"] == (3,)
        assert orders[f"{region}.ff_proj"] == orders[f"{region}.up_proj"]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [("*.nothing", "no layer"), ("*", "others can pay"), ("blocks.0.*", "others can pay")],
)
def test_refuses_what_cannot_be_paid(patterns: str, said: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(QdcError, match=said):
        qdc.compile(
            model,
            PASSES.format(patterns),
            out=tmp_path / "out",
            plugins=[EXAMPLE],
            samples=4,
            length=16,
        )
    assert not (tmp_path / "out").exists()


def test_its_text_rebuilds_it() -> None:
    step = PROTECT(layers=("*.q_proj", "blocks.0.*"))
    item = parse_item(str(step))
    assert item.options["layers"] == step.layers


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=2, max_size=8),
    st.data(),
)
def test_the_mean_is_at_most_two_whatever_the_shapes(
    shapes: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Count as ``run`` spends: protected stages cost one more, each payment is one full block."""
    weights = {f"l{i}": torch.empty(8 * r, 72 * c) for i, (r, c) in enumerate(shapes)}
    graph = layers(weights)
    chosen = data.draw(st.sets(st.sampled_from(sorted(weights)), min_size=1))
    try:
        payments = PROTECT(layers=tuple(chosen)).payments(graph)
    except QdcError:
        return
    total, size = Fraction(0), 0
    for node in graph.layers():
        pay = payments.get(node.inputs[0])
        weight = node.rows * node.columns
        size += weight
        total += 3 * weight if pay is None else 2 * weight - pay * 128 * node.rows
        assert pay is None or 0 <= pay <= node.columns // 128
    assert total <= 2 * size
