"""distill: gradients are the whole model's, held-out loss never rises, what is stored, refusals."""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import qdc
from qdc.errors import InvalidCalibration, InvalidPipeline, MissingAnnotation
from qdc.ir.tuned import Tuned
from qdc.models.predictions import predictions
from qdc.passes.distill import Distill
from qdc.passkit.course import Batch
from qdc.passkit.end_loss import Divergence
from qdc.passkit.trial import Trial
from qdc.passkit.tuning import Rates, Tuning
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import compile_tiny, run_passes
from tests.support.families import CASES, write_family
from tests.support.outlooks import forecast_tiny

SAMPLES = "samples=8 length=16 pack=within"
RTN = "rtn-lower{group=16}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "model"
    return write_checkpoint(
        folder, d_model=32, mlp_hidden_size=48, vocab=2048, seed=1, dtype=torch.float32
    )


class Compare(Distill):
    """Note the loss and the gradients of all vectors, and the same of a plain model."""

    name: ClassVar[str] = "compare"
    folder: ClassVar[Path]
    found: ClassVar[dict[str, Tensor]] = {}
    expected: ClassVar[dict[str, Tensor]] = {}
    losses: ClassVar[list[float]] = []

    def run(self, unit: Unit) -> None:
        batches, training, _ = self.batches(unit)
        streams, course, loss = self.prepare(unit, batches)
        start = [Batch(held, None) for held in streams[0].kept]
        tuning = Tuning(unit, course.pieces, course.states, Rates(0.01, 0.01))
        found = Trial(course, loss, start, tuning).differentiate(training)
        vectors = {
            f"{unit.graph[name].path}.{role}": tensor.grad
            for name, tensors in tuning.vectors.items()
            for role, tensor in tensors.items()
        }
        self.found.update({name: grad for name, grad in vectors.items() if grad is not None})
        tokens = torch.cat([batches[i] for i in training])
        hidden = torch.ones_like(tokens, dtype=torch.bool)
        shift = 0
        if self.geometry != "clean":
            hidden, shift = tokens == MASK, unit.model.logits_shift
        right = load_checkpoint(self.folder, "cpu", torch.float32)
        wrong = load_checkpoint(self.folder, "cpu", torch.float32)
        for node in unit.layers():
            leaf = wrong.get_submodule(node.path)
            leaf.weight = torch.nn.Parameter(unit.current(node))
        wrong.requires_grad_()
        one, two = (predictions(m(tokens), hidden, shift).log_softmax(-1) for m in (right, wrong))
        total = (one.exp() * (one - two)).sum() / len(one)
        torch.autograd.backward(total)
        for name, parameter in wrong.named_parameters():
            if name in vectors and parameter.grad is not None:
                self.expected[name] = parameter.grad
        self.losses[:] = [found.mean, float(total.detach())]


@pytest.mark.parametrize(
    ("family", "options"),
    [("llada", "batch=3"), ("llada", "batch=2 together=2 geometry=clean"), ("dream", "batch=8")],
)
def test_gradients_region_by_region_are_those_of_the_whole_model(
    family: str, options: str, model: Path, text: Path, tmp_path: Path
) -> None:
    if family == "dream":
        model = write_family(tmp_path, CASES["dream"], dtype=torch.float32)
    known = standard_registry()
    known.add(Compare)
    Compare.folder = model
    for kept in (Compare.found, Compare.expected):
        kept.clear()
    passes = f"{RTN},compare{{{SAMPLES} {options}}},pack"
    run_passes(model, tmp_path / "run", known, passes, calibration=text)
    assert Compare.losses[0] == pytest.approx(Compare.losses[1], rel=1e-4)
    assert Compare.losses[1] > 1e-3
    assert set(Compare.found) == set(Compare.expected)
    assert len(Compare.found) >= 5, "two norms of each region and the last one"
    for name, grad in Compare.found.items():
        torch.testing.assert_close(grad, Compare.expected[name], rtol=1e-3, atol=1e-6, msg=name)


def distilled(
    model: Path, text: Path, out: Path, options: str = "", start: str = "", **more: Any
) -> Any:
    passes = f"{start}{RTN},distill{{{SAMPLES} {options}}},pack"
    return compile_tiny(model, out, passes, calibration=text, samples=None, length=None, **more)


def remarked(report: Any) -> tuple[str, float, float]:
    """What distill says: the kind, the loss before, and after."""
    shown = re.compile(r"(\w+) distill %\S+ before=(\S+) after=(\S+) positions=(\d+)")
    (found,) = filter(None, map(shown.match, report.remarks))
    return found[1], float(found[2]), float(found[3])


@pytest.mark.parametrize(
    "start", ["", "rotate,quantize-activations{samples=8 length=16 ranges=static classes=masked},"]
)
def test_predictions_come_nearer_and_the_artifact_is_what_was_judged(
    start: str, model: Path, text: Path, tmp_path: Path
) -> None:
    options = "rounds=3 batch=2 scale-rate=0.02 held-out=0.5"
    report = distilled(model, text, tmp_path / "out", options, start, states="f32")
    kind, before, after = remarked(report)
    assert kind == "passed"
    assert after < 0.9 * before
    step = Distill.model_validate({"samples": 8, "length": 16, "pack": "within", "held_out": 0.5})
    states: list[Tensor] = []

    class Held(Distill):
        """Take the held-out samples."""

        name: ClassVar[str] = "take-held"

        def run(self, unit: Unit) -> None:
            batches, _, held = self.batches(unit)
            states.extend(batches[i] for i in held)

    known = standard_registry()
    known.add(Held)
    taken = f"{RTN},{str(step).replace('distill', 'take-held')},pack"
    run_passes(model, tmp_path / "taken", known, taken, calibration=text)
    tokens = torch.cat(states)
    original = load_checkpoint(model, "cpu", torch.float32)
    loaded = qdc.load(tmp_path / "out", backend="reference", dtype=torch.float32)
    with torch.no_grad():
        one, two = (m(tokens)[tokens == MASK].log_softmax(-1) for m in (original, loaded))
    found = float((one.exp() * (one - two)).sum(1).mean())
    assert found == pytest.approx(after, rel=1e-3)
    assert report.distilled.text().startswith(f"{before:.4g} to {after:.4g} nats")


def test_a_step_does_not_depend_on_how_gains_and_weights_share_a_scale(
    text: Path, tmp_path: Path
) -> None:
    """Two forms of one function: gains of 1, and gains of 1/16 before weights 16 times as large."""

    def moved(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("norm.weight"):
                tensor /= 16
            elif "blocks" in name and "out" not in name:
                tensor *= 16

    found = []
    for name, edit in (("plain", None), ("moved", moved)):
        model = write_checkpoint(
            tmp_path / name, d_model=32, mlp_hidden_size=48, dtype=torch.float32, edit=edit
        )
        options = "rounds=1 batch=2 norm-rate=0.02 scale-rate=0.02"
        report = distilled(model, text, tmp_path / f"{name}-out", options, states="f32")
        found.append(remarked(report))
    (kind, before, after), other = found
    assert kind == "passed"
    assert after < 0.98 * before
    assert other[0] == "passed"
    assert other[1] == pytest.approx(before, rel=1e-3)
    assert other[2] == pytest.approx(after, rel=1e-3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_second_compile_is_byte_identical(model: Path, text: Path, tmp_path: Path) -> None:
    for name, options in (("a", "batch=2"), ("b", "batch=2"), ("c", "batch=2 schedule=cosine")):
        distilled(model, text, tmp_path / name, f"rounds=1 scale-rate=0.02 {options}")
    one, two, other = (files(tmp_path / name) for name in "abc")
    assert one == two
    assert one != other


def test_steps_that_only_do_harm_and_none_leave_everything_as_it_was(
    model: Path, text: Path, tmp_path: Path
) -> None:
    compile_tiny(model, tmp_path / "plain", f"{RTN},pack")
    harm = "norm-rate=1 scale-rate=0 batch=1 schedule=constant"
    for name, options in (("harm", harm), ("none", "norm-rate=0 scale-rate=0")):
        report = distilled(model, text, tmp_path / name, f"rounds=1 {options}")
        assert remarked(report)[0] == "missed"
        assert "nothing gained" in report.distilled.text()
        assert files(tmp_path / name) == files(tmp_path / "plain")


def test_steps_that_do_harm_become_smaller_until_they_help(
    model: Path, text: Path, tmp_path: Path
) -> None:
    options = "batch=2 scale-rate=0.3 norm-rate=0.3 schedule=constant"
    assert remarked(distilled(model, text, tmp_path / "one", f"rounds=1 {options}"))[0] == "missed"
    kind, before, after = remarked(distilled(model, text, tmp_path / "all", f"rounds=5 {options}"))
    assert kind == "passed"
    assert after < before


@pytest.mark.parametrize("last", ["distill{rounds=1}", "polish{iterations=2}"])
def test_what_only_chooses_experts_is_not_said_to_be_tuned(
    last: str, text: Path, tmp_path: Path
) -> None:
    """The bias of LLaDA2's routers has no derivative."""
    model = write_family(tmp_path / "model", CASES["llada2"])
    plain = "rtn-lower{group=8}" if last.startswith("distill") else "calibrate-mcs,sensitivity"
    lowered = plain if plain.startswith("rtn") else f"{plain},abmp-allocate,daq-lower"
    report = compile_tiny(model, tmp_path / "out", f"{lowered},{last},pack", calibration=text)
    kept = {row.reason for row in report.coverage if row.status == "kept"}
    assert "router" in kept
    assert "rms-norm, tuned" in kept


@pytest.mark.slow
def test_only_norms_move_where_only_they_may(model: Path, text: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "plain", f"{RTN},pack")
    distilled(model, text, tmp_path / "out", "rounds=1 batch=2 scale-rate=0 norm-rate=0.01")
    plain, found = (qdc.load(tmp_path / n, backend="reference") for n in ("plain", "out"))
    before, after = plain.state_dict(), found.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("norm" in name or "ln_f" in name for name in moved)


def test_predictions_that_are_no_numbers_are_never_the_better_ones() -> None:
    assert Divergence(math.nan, 3).mean == math.inf
    assert Divergence(-1e-9, 3).mean == Divergence(0.0, 0).mean == 0
    assert Divergence(6.0, 3).mean == 2


def test_it_stands_behind_lowerings_and_before_pack() -> None:
    known = standard_registry()
    stages = "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower)"
    for passes in ("distill,rtn-lower,pack", f"{stages},pack,distill"):
        with pytest.raises(MissingAnnotation, match="distill reads @lowered"):
            check_order(build_plan(passes, known))
    check_order(build_plan(f"{stages},distill,pack", known))


@pytest.mark.parametrize(
    "option",
    [
        "rounds=0",
        "together=0",
        "held-out=0",
        "scale-rate=2",
        "norm-rate=-1",
        "schedule=steep",
        "masked-weight=2",
    ],
)
def test_options_are_checked(option: str) -> None:
    with pytest.raises(InvalidPipeline, match="distill refuses"):
        build_plan(f"distill{{{option}}}", standard_registry())


def test_one_sample_cannot_be_held_out(model: Path, text: Path, tmp_path: Path) -> None:
    passes = f"{RTN},distill{{samples=1 length=16}},pack"
    with pytest.raises(InvalidCalibration, match="holds samples out"):
        compile_tiny(model, tmp_path / "out", passes, calibration=text, samples=None, length=None)


def test_a_codec_without_such_a_form_is_refused_before_anything_runs(tmp_path: Path) -> None:
    wide = write_checkpoint(tmp_path / "wide", d_model=256, mlp_hidden_size=256, vocab=2048)
    passes = "stages(calibrate-mcs,sensitivity,gguf-lower),distill,pack"
    with pytest.raises(InvalidPipeline, match="layers stored as ggml cannot be distilled"):
        forecast_tiny(wide, passes)


def test_samples_seen_at_several_times_are_held_out_whole(
    model: Path, text: Path, tmp_path: Path
) -> None:
    seen: list[tuple[Tensor, list[int], list[int]]] = []

    class Split(Distill):
        """Take the batches."""

        name: ClassVar[str] = "split"

        def run(self, unit: Unit) -> None:
            batches, training, held = self.batches(unit)
            seen.append((torch.cat(list(batches)), training, held))
            assert unit.graph.get("blocks.0.attn_norm", Tuned) is None

    known = standard_registry()
    known.add(Split)
    passes = f"{RTN},split{{samples=4 length=16 timesteps=3 batch=3}},pack"
    run_passes(model, tmp_path, known, passes, calibration=text)
    ((tokens, training, held),) = seen
    assert len(tokens) == 12
    assert (training, held) == ([0, 1, 2], [3])


def test_it_is_foreseen(model: Path) -> None:
    outlook = forecast_tiny(model, f"{RTN},distill,pack")
    assert not outlook.unknown
