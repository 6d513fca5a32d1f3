"""slim-allocate: the count of least divergence, quirks of the release, both kinds of lowering."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidPipeline, OrderOutOfRange
from qdc.ir.annotations import Factor, Moment, Orders, Salience
from qdc.numerics.blocks import block_slices
from qdc.numerics.factor import factorize
from qdc.numerics.group_moves import group_counts, moved_orders
from qdc.numerics.importance import block_scores
from qdc.numerics.output_divergence import write_out
from qdc.passes.slim_allocate import SlimAllocate
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, run_passes, spying
from tests.support.units import make_unit, noise

DRAWN = "samples=4 length=16"
LAYERS = 8
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its linears hear some inputs loudly and some hardly at all, so that moving bits gains."""

    def edit(tensors: dict[str, Tensor]) -> None:
        for name, weight in tensors.items():
            if "blocks" in name and weight.ndim == 2:
                first, last = slice(8), slice(-8, None)
                loud, quiet = (last, first) if "k_proj" in name else (first, last)
                weight[:, loud] *= 4
                weight[:, quiet] *= 0.2

    folder = tmp_path_factory.mktemp("slim") / "model"
    return write_checkpoint(
        folder, d_model=32, mlp_hidden_size=56, n_layers=1, dtype=torch.float32, edit=edit
    )


def allocated(model: Path, folder: Path, options: str, block: int = 8) -> Found:
    """What stands on each layer before and behind the allocation, and what the layer reads."""
    found: Found = {}

    def look(label: str, unit: Unit) -> None:
        for stage, layers in unit.layers_by_stage():
            for node in layers:
                facts = found.setdefault(node.name.removeprefix("blocks.0."), {})
                for kind in (Moment, Factor, Salience, Orders):
                    note = unit.graph.get(node.name, kind)
                    if note is not None:
                        facts[f"{label}{kind.tag}"] = note
                        if isinstance(note, Moment | Factor):
                            facts[f"{label}{kind.tag}-tensor"] = unit.get(note.tensor).clone()
                facts["weight"] = unit.weight(node)
                stream = unit.open_streams()[0, False]
                if label == "before-":
                    facts["inputs"] = torch.cat([v.flatten(0, 1) for v in stream.values(stage)])

    passes = (
        f"stages(calibrate-mcs{{{DRAWN}}},sensitivity{{block={block}}},spy{{label=before-}},"
        f"slim-allocate{{{DRAWN} {options}}},spy{{label=after-}},rtn-lower)"
    )
    run_passes(model, folder, spying(look), passes, stop_after="rtn-lower")
    return found


def divergences(facts: dict[str, Any], scores: Any, release: bool, binary: bool) -> list[float]:
    """Of every count, one full product for each."""
    weight, inputs = facts["weight"].double(), facts["inputs"].double()
    slices = block_slices(weight.shape[1], 8)
    forms = dict(zip((1, 2, 3), write_out(facts["weight"], slices, 2, binary=binary), strict=True))
    ranking = sorted(range(len(slices)), key=lambda place: scores[place])
    wanted = (inputs @ weight.T).log_softmax(-1)
    found = []
    for count in group_counts(len(slices), release=release):
        orders = moved_orders(ranking, count, len(slices), 2)
        parts = [forms[bits][:, part] for bits, part in zip(orders, slices, strict=True)]
        got = (inputs @ torch.cat(parts, 1).double().T).log_softmax(-1)
        found.append(float((got.exp() * (got - wanted)).sum(-1).mean()))
    return found


@pytest.mark.parametrize(
    ("counts", "write_out"), [("all", "rounding"), ("release", "rounding"), ("all", "binary")]
)
def test_the_count_of_least_divergence_wins(
    counts: str, write_out: str, model: Path, tmp_path: Path
) -> None:
    found = allocated(model, tmp_path, f"counts={counts} write-out={write_out}")
    release = counts == "release"
    moved = 0
    for facts in found.values():
        scores = facts["before-salience"].blocks
        rises = divergences(facts, scores, release, write_out == "binary")
        best = group_counts(len(scores), release=release)[rises.index(min(rises))]
        ranking = sorted(range(len(scores)), key=lambda place: scores[place])
        assert facts["after-orders"].blocks == moved_orders(ranking, best, len(scores), 2)
        assert (facts["after-orders"].mean, facts["after-orders"].budget) == (2, 2)
        assert facts["after-factor"] == facts["before-factor"]
        moved += best
    assert len(found) == 7
    assert moved > 0


def test_layers_of_a_stage_share_a_count_on_demand(model: Path, tmp_path: Path) -> None:
    alone = allocated(model, tmp_path / "a", "")
    shared = allocated(model, tmp_path / "b", "scope=stage")
    names = ("q_proj", "k_proj", "v_proj")
    assert len({shared[name]["after-orders"].blocks for name in names}) == 1
    assert len({alone[name]["after-orders"].blocks for name in names}) > 1
    total = [
        sum(c) for c in zip(*(shared[n]["before-salience"].blocks for n in names), strict=True)
    ]
    rises = [sum(c) for c in zip(*(divergences(shared[n], total, False, False) for n in names),
                                 strict=True)]  # fmt: skip
    ranking = sorted(range(4), key=lambda place: total[place])
    expected = moved_orders(ranking, rises.index(min(rises)), 4, 2)
    assert shared["q_proj"]["after-orders"].blocks == expected


def damped(moment: Tensor, share: float) -> Tensor:
    """The factor, with 0.5 added to the diagonal of twice the moment."""
    return factorize(moment + 0.25 * torch.eye(len(moment)), share).upper


def test_damping_in_place_ranks_and_stays(model: Path, tmp_path: Path) -> None:
    scored = allocated(model, tmp_path / "a", "damp-in-place=0.5 counts=release")
    final = allocated(model, tmp_path / "b", "damp-in-place=0.5 counts=release rank=final")
    for name, facts in scored.items():
        moment, weight = facts["before-moment-tensor"], facts["weight"]
        slices = block_slices(weight.shape[1], 8)
        scoring, left = damped(moment, 0), damped(moment, facts["before-factor"].damp)
        torch.testing.assert_close(facts["after-factor-tensor"], left)
        assert not torch.allclose(facts["before-factor-tensor"], left, rtol=1e-3)
        scores = block_scores(weight, scoring, slices)
        rises = divergences(facts, scores, True, False)
        best = group_counts(len(scores), release=True)[rises.index(min(rises))]
        for found, factor in ((facts, scoring), (final[name], left)):
            scores = block_scores(weight, factor, slices)
            ranking = sorted(range(len(scores)), key=lambda place: scores[place])
            expected = moved_orders(ranking, best, len(scores), 2)
            if name in ("q_proj", "k_proj", "v_proj"):  # read what is not quantized yet
                assert found["after-orders"].blocks == expected


@pytest.mark.parametrize(
    "passes",
    [
        "stages(calibrate-mcs,sensitivity{block=8},slim-allocate,daq-lower{sweeps=2}),pack",
        "calibrate-mcs,sensitivity{block=8},slim-allocate{scope=stage},slim-lower{steps=4},pack",
        "stages(calibrate-mcs,sensitivity{block=8},abmp-allocate,slim-lower{steps=4}),pack",
        "stages(calibrate-mcs,sensitivity{block=16},measure-orders{sweeps=1},allocate{least-gain=0},"
        "slim-lower{steps=4}),pack",
    ],
)
def test_allocators_and_lowerings_go_together(passes: str, model: Path, tmp_path: Path) -> None:
    report = compile_tiny(model, tmp_path / "out", passes)
    lowered = [layer for layer in report.layers if layer.codec is not None]
    kind = "multi-binary" if "daq-lower" in passes else "variable-width"
    assert {layer.codec for layer in lowered} == {kind}
    assert len(lowered) == 7
    assert report.sign_bits == 2
    assert report.predicted_bytes == report.tensor_bytes


def test_too_few_groups_are_said_and_stay(model: Path, tmp_path: Path) -> None:
    passes = "stages(calibrate-mcs,sensitivity,slim-allocate,slim-lower{steps=4}),pack"
    report = compile_tiny(model, tmp_path / "out", passes)
    said = [r for r in report.remarks if "slim-allocate" in r]
    assert len(said) == 7
    assert all("too few blocks" in remark for remark in said)


def test_the_only_count_of_the_release_is_no_lack_of_groups(model: Path, tmp_path: Path) -> None:
    """Of four groups it tries one count alone, which moves two of them."""
    passes = (
        "stages(calibrate-mcs,sensitivity{block=8},slim-allocate{counts=release},"
        "slim-lower{steps=4}),pack"
    )
    report = compile_tiny(model, tmp_path / "out", passes)
    said = [r for r in report.remarks if "slim-allocate" in r]
    assert len(said) == 7
    assert not any("too few blocks" in remark for remark in said)


def test_what_cannot_be_is_refused() -> None:
    registry = standard_registry()
    for options in ("rank=final", "damp-in-place=-1", "counts=some"):
        text = f"stages(calibrate-mcs,sensitivity,slim-allocate{{{options}}},slim-lower),pack"
        with pytest.raises(InvalidPipeline):
            build_plan(text, registry)
    for base in (1, 4):
        step = SlimAllocate(base=base)
        with pytest.raises(OrderOutOfRange, match=f"base {base} needs orders"):
            step.check(make_unit(step, {"q": noise(2, 8)}).graph)
