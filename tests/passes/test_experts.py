"""Experts: moments of routed tokens, pooled ones for those that see few, drift token by token."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qdc
from qdc.errors import InvalidCalibration
from qdc.ir.annotations import Moment
from qdc.ir.costs import LossSensitivity
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import Node, Stage
from qdc.ir.routing import rows_of
from qdc.numerics.moment import MomentAccumulator
from qdc.passkit.experts import Reading, paired
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import run_passes, spying
from tests.support.experts import HIDDEN, WIDTH, write_mixture

SAMPLES, LENGTH = 5, 12
OPTIONS = f"samples={SAMPLES} length={LENGTH} batch=2 seed=7 pack=within"
BLOCK = "model.layers.1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("experts") / "model")


class Calibrated:
    """What ``calibrate-mcs`` left, and the same inputs in a plain forward."""

    def __init__(self, model: Path, folder: Path, text: Path, options: str) -> None:
        self.notes: dict[str, Moment] = {}
        self.moments: dict[str, Tensor] = {}
        tokens: list[Tensor] = []

        def look(label: str, unit: Unit) -> None:
            tokens.append(unit.open_streams()[0, False].tokens)
            for node in unit.layers():
                self.notes[node.name] = note = unit.graph.require(node.name, Moment)
                self.moments[node.name] = unit.get(note.tensor).clone()

        passes = f"calibrate-mcs{{{OPTIONS}{options}}},spy"
        report = run_passes(model, folder, spying(look), passes, stop_after="spy", calibration=text)
        self.remarks = report.remarks
        self.tokens = tokens[0]
        self.plain = load_checkpoint(model, "cpu", torch.float32)

    def reads(self, path: str) -> Tensor:
        """Every token that a linear reads, ``[n, columns]``."""
        seen: list[Tensor] = []
        module = self.plain.get_submodule(path)
        hook = module.register_forward_pre_hook(lambda _, read: seen.append(read[0].flatten(0, -2)))
        with torch.no_grad():
            self.plain(self.tokens)
        hook.remove()
        return seen[0]

    def gives(self, path: str) -> Tensor:
        """What a module gives for the samples."""
        seen: list[Tensor] = []
        module = self.plain.get_submodule(path)
        hook = module.register_forward_hook(lambda _, read, given: seen.append(given))
        with torch.no_grad():
            self.plain(self.tokens)
        hook.remove()
        return seen[0]


def moment(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    shares = torch.ones(len(rows)) if weights is None else weights
    return (rows * shares[:, None]).T @ rows / shares.sum()


def expert(plain: nn.Module, number: int) -> nn.Module:
    return plain.get_submodule(f"{BLOCK}.mlp.experts.{number}")


def test_each_moment_is_that_of_the_routed_tokens(model: Path, text: Path, tmp_path: Path) -> None:
    found = Calibrated(model, tmp_path, text, " least-tokens=1")
    for name, note in found.notes.items():
        rows = found.reads(name)
        torch.testing.assert_close(found.moments[name], moment(rows), rtol=1e-4, atol=1e-6)
        assert (note.tokens, note.routed) == (len(rows), None)
    shares = {len(found.reads(f"{BLOCK}.mlp.experts.{e}.up_proj")) for e in range(4)}
    assert len(shares) > 1, "the router is to be uneven"
    assert not found.remarks


def test_weights_of_masked_tokens_go_with_them(model: Path, text: Path, tmp_path: Path) -> None:
    found = Calibrated(model, tmp_path, text, " least-tokens=1 masked-weight=3")
    masked = (found.tokens == MASK).flatten()
    weights = found.gives(f"{BLOCK}.mlp.routing").flatten(0, 1)
    for number in range(4):
        name = f"{BLOCK}.mlp.experts.{number}.down_proj"
        here = masked[weights[:, number] > 0]
        due = moment(found.reads(name), 1 + 2 * here.float())
        torch.testing.assert_close(found.moments[name], due, rtol=1e-4, atol=1e-6)
        assert found.notes[name].masked == pytest.approx(here.double().mean().item())


def test_few_tokens_are_replaced_by_all(model: Path, text: Path, tmp_path: Path) -> None:
    """The expert is fed with every token of its block; the rest is not touched."""
    found = Calibrated(model, tmp_path, text, f" least-tokens={SAMPLES * LENGTH + 1}")
    hidden = found.gives(f"{BLOCK}.post_attention_layernorm").flatten(0, 1)
    for number in range(4):
        path = f"{BLOCK}.mlp.experts.{number}"
        member = expert(found.plain, number)
        with torch.no_grad():
            gate, up = member.get_submodule("gate_proj"), member.get_submodule("up_proj")
            inner = torch.nn.functional.silu(gate(hidden)) * up(hidden)
        routed = len(found.reads(f"{path}.up_proj"))
        for leaf, rows in (("gate_proj", hidden), ("up_proj", hidden), ("down_proj", inner)):
            name = f"{path}.{leaf}"
            torch.testing.assert_close(found.moments[name], moment(rows), rtol=1e-4, atol=1e-6)
            note = found.notes[name]
            assert (note.tokens, note.routed) == (SAMPLES * LENGTH, routed)
            assert f"{SAMPLES * LENGTH} tokens pooled for {routed} routed" in note.text()
            needed = SAMPLES * LENGTH + 1
            remark = f"%{name} reason=few routed tokens tokens={routed} needed={needed}"
            assert f"missed calibrate-mcs {remark}" in found.remarks
    dense = found.notes[f"{BLOCK}.self_attn.o_proj"]
    assert (dense.tokens, dense.routed) == (SAMPLES * LENGTH, None)


def test_as_many_tokens_as_inputs_are_needed(model: Path, text: Path, tmp_path: Path) -> None:
    found = Calibrated(model, tmp_path, text, "")
    counts = set()
    for name, note in found.notes.items():
        if ".experts." in name:
            seen = len(found.reads(name))
            columns = HIDDEN if "down" in name else WIDTH
            assert (note.routed is not None) == (seen < columns)
            counts.add(note.routed is not None)
    assert counts == {True, False}, "the samples are to leave some experts short of tokens"


def test_a_number_of_tokens_is_for_experts(text: Path, tmp_path: Path) -> None:
    dense = write_checkpoint(tmp_path / "dense", d_model=32, mlp_hidden_size=48)
    with pytest.raises(InvalidCalibration, match="least-tokens is given, and the model has no"):
        Calibrated(dense, tmp_path, text, " least-tokens=4")


def reading(rows: list[int], offset: float) -> Reading:
    value = torch.tensor(rows, dtype=torch.float32)[:, None] + offset
    return Reading(value, torch.zeros(len(rows)), {}, torch.tensor(rows, dtype=torch.int64))


@pytest.mark.parametrize(
    ("now", "original", "due"),
    [
        ([1, 4, 6, 9], [0, 4, 5, 9, 11], [1.0, 4.5, 6.0, 9.5]),
        ([2, 3], [2, 3], [2.5, 3.5]),
        ([2, 3], [], [2.0, 3.0]),
        ([], [1], []),
    ],
)
def test_tokens_are_paired_by_their_places(
    now: list[int], original: list[int], due: list[float]
) -> None:
    found = paired(reading(now, 0), reading(original, 0.5))
    assert found.flatten().tolist() == due


def test_drift_is_of_the_tokens_that_both_models_route_alike(
    model: Path, text: Path, tmp_path: Path
) -> None:
    parted = []

    def look(label: str, unit: Unit) -> None:
        """Both streams stand before the stage: pair their tokens by hand, one by one."""
        for stage, layers in unit.layers_by_stage():
            rows = rows_of(unit.graph, stage.value)
            if rows is not None:
                compare(unit, stage, layers, rows)

    def compare(unit: Unit, stage: Stage, layers: tuple[Node, ...], rows: str) -> None:
        total, count = torch.zeros(layers[0].columns, layers[0].columns), 0
        streams = unit.open_streams()[0, False], unit.open_streams()[0, True]
        for now, original in zip(*(s.compute((stage.value, rows)) for s in streams), strict=True):
            before = dict(zip(original[rows].tolist(), original[stage.value], strict=True))
            for place, x in zip(now[rows].tolist(), now[stage.value], strict=True):
                count += 1
                if place in before:
                    total += torch.outer(before[place] - x, x)
                else:
                    parted.append(stage.value)
        note = unit.graph.require(layers[0].name, CrossMoment)
        if not count:  # an expert that no token goes to has that of all tokens
            assert unit.get(note.tensor).isfinite().all()
            return
        torch.testing.assert_close(unit.get(note.tensor), total / count, rtol=1e-3, atol=1e-6)
        assert note.residual is None

    passes = f"stages(calibrate-cross{{{OPTIONS} least-tokens=1}},spy,rtn-lower{{bits=2}})"
    run_passes(model, tmp_path, spying(look), passes, stop_after="rtn-lower", calibration=text)
    assert parted, "the models are to route some tokens to different experts"


def test_pooled_streams_are_paired_token_by_token(model: Path, text: Path, tmp_path: Path) -> None:
    notes: dict[str, tuple[Moment, CrossMoment]] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            graph = unit.graph
            notes[node.name] = (
                graph.require(node.name, Moment),
                graph.require(node.name, CrossMoment),
            )

    passes = f"stages(calibrate-cross{{{OPTIONS} least-tokens=1000}},spy,rtn-lower)"
    run_passes(model, tmp_path, spying(look), passes, stop_after="rtn-lower", calibration=text)
    for name, (moments, cross) in notes.items():
        if ".experts." in name:
            assert moments.tokens == SAMPLES * LENGTH
            assert cross.drift > 1e-4


def test_experts_are_probed_together(model: Path, text: Path, tmp_path: Path) -> None:
    """What a run loses is divided by the layers' errors, each times its tokens."""
    notes: dict[str, tuple[LossSensitivity, int]] = {}

    def look(label: str, unit: Unit) -> None:
        graph = unit.graph
        for node in unit.layers():
            tokens = graph.require(node.name, Moment).tokens
            notes[node.name] = graph.require(node.name, LossSensitivity), tokens

    forwards = {}
    for together in (1, 2):
        passes = (
            f"calibrate-mcs{{{OPTIONS} least-tokens=1}},"
            f"probe-loss{{{OPTIONS} least-tokens=1 probes=2 together={together}}},spy"
        )
        out, registry = tmp_path / str(together), spying(look)
        report = run_passes(model, out, registry, passes, stop_after="spy", calibration=text)
        forwards[together] = report.layer_forwards
        assert len(notes) == 2 * (4 + 3 * 4)
        losses = [
            note.rise / (note.error * tokens)
            for note, tokens in (notes[f"{BLOCK}.mlp.experts.{e}.down_proj"] for e in range(4))
        ]
        alike = [one == pytest.approx(other) for one, other in (losses[:2], losses[2:])]
        assert all(alike) if together == 2 else not any(alike)
        assert losses[0] != pytest.approx(losses[2])
    assert forwards[2] < forwards[1]


def test_every_preset_of_experts_compiles(text: Path, tmp_path: Path) -> None:
    """Also with an expert that no token is routed to, in every pass that reads samples."""
    model = write_mixture(tmp_path / "model", experts=3, count=1, idle=True, num_hidden_layers=1)
    calibrated = "samples=6 length=16"
    passes = (
        f"probe-loss{{{calibrated} probes=2}},"
        f"stages(calibrate-cross{{{calibrated}}},sensitivity,measure-orders,"
        "allocate{weights=loss},daq-lower{asymmetry=1}),"
        f"polish{{{calibrated} iterations=4 batch=2 check-every=2}},pack"
    )
    report = qdc.compile(model, passes, out=tmp_path / "out", calibration=text)
    routed = {layer.name: layer.routed for layer in report.layers}
    idle = "model.layers.0.mlp.experts.2"
    assert {routed[f"{idle}.{leaf}_proj"] for leaf in ("gate", "up", "down")} == {0}
    assert len(routed) == 4 + 9
    assert report.sign_bits == 2
    kept = {row.reason for row in report.coverage if row.tensor.endswith("mlp.gate.weight")}
    assert kept == {"router"}
    loaded = qdc.load(tmp_path / "out", backend="reference")
    tokens = torch.randint(2048, (2, 9), generator=torch.Generator().manual_seed(0))
    assert bool(loaded(tokens).isfinite().all())


def test_the_accumulator_takes_no_tokens() -> None:
    accumulator = MomentAccumulator(3)
    accumulator.add(torch.zeros(0, 3), torch.zeros(0))
    assert accumulator.tokens == 0
