"""polish: held-out loss, what later regions see, what is stored, what is refused."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

import qdc
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidPipeline, MissingAnnotation
from qdc.format.codec import Codec, Lowered
from qdc.ir.annotations import Moment
from qdc.ir.types import ValueType
from qdc.passes.polish import Polish
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import Registry, standard_registry
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import PLAIN, Spy, compile_tiny, run_passes
from tests.support.plain import PlainModel

SAMPLES = "samples=16 length=12 pack=within"
STAGES = (
    f"stages(calibrate-mcs{{{SAMPLES}}},look{{label=calibrated}},sensitivity,abmp-allocate,"
    "daq-lower{rounds=0 code-sweeps=0 scale-bits=SCALE}),"
)
POLISH = f"polish{{{SAMPLES} iterations=12 check-every=4 OPTIONS}}"


class Measure(Polish):
    """Note the loss of the region on the held-out samples, by the streams alone."""

    name: ClassVar[str] = "measure"
    label: str = Field(default="")
    found: ClassVar[dict[str, float]] = {}

    def run(self, unit: Unit) -> None:
        assert unit.region is not None
        stream = unit.stream(lambda: self.batches(unit))
        reference = unit.reference(lambda: list(torch.split(stream.tokens, self.batch)))
        stream.start(unit.region)
        reference.start(unit.region)
        outputs = stream.results(unit.region)
        pairs = list(zip(stream.compute(outputs), reference.compute(outputs), strict=True))
        hidden = stream.tokens == unit.model.mask
        weights = torch.split(self.weigh(hidden), self.batch)
        _, held = self.split(len(pairs))
        losses = []
        for index in held:
            (value,), (target,) = (tuple(found.values()) for found in pairs[index])
            error = (value - target).square().mean(2)
            losses.append(float((error * weights[index]).sum() / weights[index].sum()))
        self.found[f"{unit.region.name} {self.label}"] = sum(losses) / len(losses)


class Look(Spy):
    """Keep the moments, and all weights and gains as they stand."""

    name: ClassVar[str] = "look"
    moments: ClassVar[dict[str, Tensor]] = {}
    weights: ClassVar[dict[str, Tensor]] = {}
    tokens: ClassVar[list[Tensor]] = []

    def run(self, unit: Unit) -> None:
        assert unit.region is not None
        if self.label == "calibrated":
            self.tokens[:] = [unit.open_streams()[0, False].tokens]
            for node in unit.layers():
                note = unit.graph.require(node.name, Moment)
                self.moments[node.name] = unit.get(note.tensor).clone()
            return
        for name in unit.region.nodes:
            if unit.graph[name].parameters:
                self.weights[name] = unit.current(unit.graph[name]).clone()


def registry() -> Registry:
    found = standard_registry()
    for kind in (Measure, Look):
        found.add(kind)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("polish") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, seed=1)


def run(model: Path, text: Path, folder: Path, options: str, bits: int = 16, end: str = "") -> Any:
    passes = (
        STAGES.replace("SCALE", str(bits))
        + f"measure{{{SAMPLES} label=before OPTIONS}},{POLISH},look{{label=polished}},"
        + f"measure{{{SAMPLES} label=after OPTIONS}},pack{end}"
    )
    for kept in (Measure.found, Look.moments, Look.weights):
        kept.clear()
    both = " ".join(o for o in options.split() if o.startswith(("masked-weight", "held-out")))
    head, _, tail = passes.partition(POLISH)
    text_of = head.replace("OPTIONS", both) + POLISH.replace("OPTIONS", options)
    return run_passes(
        model, folder, registry(), text_of + tail.replace("OPTIONS", both), calibration=text
    )


def remarked(report: Any) -> dict[str, tuple[str, float, float]]:
    """Of each region: what polish says, the loss before, and after."""
    shown = re.compile(r"(\w+) polish %(blocks\.\d)\..* region_loss_before=(\S+) region_loss=(\S+)")
    found = filter(None, map(shown.match, report.remarks))
    return {m[2]: (m[1], float(m[3]), float(m[4])) for m in found}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("", 16),
        ("", 8),
        ("code-rate=0 scale-rate=0.0003 norm-rate=0", 8),
        ("code-rate=0 scale-rate=0 norm-rate=0.00005", 16),
        ("masked-weight=8 held-out=0.5", 16),
        ("code-rate=0.2 scale-rate=0.1 norm-rate=0.1", 8),
    ],
)
def test_the_loss_on_held_out_samples_never_rises(
    options: str, bits: int, model: Path, text: Path, tmp_path: Path
) -> None:
    """As it is stored: tiny steps that rounding takes back again, or makes worse, are dropped."""
    said = remarked(run(model, text, tmp_path, options, bits))
    assert set(said) == {"blocks.0", "blocks.1"}
    for region, (kind, before, after) in said.items():
        assert Measure.found[f"{region} before"] == pytest.approx(before, rel=1e-3)
        assert Measure.found[f"{region} after"] == pytest.approx(after, rel=1e-3)
        assert Measure.found[f"{region} after"] <= Measure.found[f"{region} before"]
        assert kind == ("passed" if after < before else "missed")


def test_it_pays_and_later_regions_are_calibrated_behind_it(
    model: Path, text: Path, tmp_path: Path
) -> None:
    said = remarked(run(model, text, tmp_path, ""))
    assert all(after < 0.97 * before for _, before, after in said.values())
    plain = PlainModel(model, Look.tokens[0])
    original = plain.moment("blocks.1.q_proj")
    first = {name: w for name, w in Look.weights.items() if name.startswith("blocks.0.")}
    assert len(first) == 9, "seven linears and two norms"
    plain.replace(first)
    found = Look.moments["blocks.1.q_proj"]
    torch.testing.assert_close(found, plain.moment("blocks.1.q_proj"), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, original, rtol=0.05)


class Watch(Spy):
    """Note what every stage reads in a stream of its own."""

    name: ClassVar[str] = "watch"
    tokens: ClassVar[Tensor] = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]])
    seen: ClassVar[dict[str, Tensor]] = {}

    def run(self, unit: Unit) -> None:
        stream = unit.stream(lambda: [self.tokens])
        for stage in unit.stages:
            stream.enter(stage)
            (self.seen[unit.graph[stage.layers[0]].path],) = stream.values(stage)


def test_norms_are_stored_and_the_loaded_model_is_that_of_the_stream(
    model: Path, text: Path, tmp_path: Path
) -> None:
    known = registry()
    known.add(Watch)
    passes = STAGES.replace("SCALE", "8") + POLISH.replace("OPTIONS", "") + ",pack,watch"
    run_passes(model, tmp_path, known, passes, calibration=text)
    loaded = qdc.load(tmp_path / "out", backend="reference")
    read: dict[str, Tensor] = {}
    for path, leaf in loaded.named_modules():
        if path in Watch.seen:
            leaf.register_forward_pre_hook(lambda _, given, at=path: read.update({at: given[0]}))
    loaded(Watch.tokens)
    assert len(read) == 8
    for path, value in Watch.seen.items():
        torch.testing.assert_close(value, read[path], rtol=1e-4, atol=1e-5, msg=path)
    stored, original = Checkpoint(tmp_path / "out"), Checkpoint(model)
    tuned = 0
    for index in range(2):
        for kind in ("attn_norm", "ff_norm"):
            name = f"model.transformer.blocks.{index}.{kind}.weight"
            assert stored.tensor(name).dtype == torch.bfloat16
            tuned += not torch.equal(stored.tensor(name), original.tensor(name))
    assert tuned


def polished(model: Path, text: Path, out: Path, options: str) -> dict[str, bytes]:
    passes = PLAIN.replace(",pack", f",polish{{iterations=6 check-every=3 {options}}},pack")
    compile_tiny(model, out, passes, calibration=text)
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def test_a_second_compile_is_byte_identical(model: Path, text: Path, tmp_path: Path) -> None:
    one, two = (polished(model, text, tmp_path / name, "batch=1") for name in "ab")
    assert one == two
    other = polished(model, text, tmp_path / "c", "batch=2")
    assert one != other


def test_steps_that_only_do_harm_leave_everything_as_it_was(
    model: Path, text: Path, tmp_path: Path
) -> None:
    compile_tiny(model, tmp_path / "plain", PLAIN, calibration=text)
    plain = {path.name: path.read_bytes() for path in (tmp_path / "plain").glob("*.safetensors")}
    found = polished(model, text, tmp_path / "out", "code-rate=1 scale-rate=1 norm-rate=1")
    assert found == plain


def test_steps_of_size_zero_change_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "plain", PLAIN, calibration=text)
    plain = {path.name: path.read_bytes() for path in (tmp_path / "plain").glob("*.safetensors")}
    found = polished(model, text, tmp_path / "out", "code-rate=0 scale-rate=0 norm-rate=0")
    assert found == plain


def test_only_norms_move_where_only_they_may(model: Path, text: Path, tmp_path: Path) -> None:
    run(model, text, tmp_path, "code-rate=0 scale-rate=0 norm-rate=0.01")
    weights = dict(Look.weights)
    run(model, text, tmp_path / "still", "code-rate=0 scale-rate=0 norm-rate=0")
    changed = {name for name in weights if not torch.equal(weights[name], Look.weights[name])}
    first = {name for name in changed if name.startswith("blocks.0.")}
    assert first
    assert all(name.endswith("norm") for name in first)


def test_it_cannot_stand_inside_stages_or_before_a_lowering_or_behind_pack() -> None:
    known = standard_registry()
    with pytest.raises(InvalidPipeline, match="polish needs whole regions"):
        build_plan(PLAIN.replace("daq-lower", "daq-lower,polish"), known)
    for text, why in (("polish,rtn-lower,pack", "nothing"), (f"{PLAIN},polish,pack", "used up")):
        with pytest.raises(MissingAnnotation, match=f"polish reads @lowered, which .*{why}"):
            check_order(build_plan(text, known))


@pytest.mark.parametrize(
    "option",
    [
        "iterations=0",
        "iterations=1000000",
        "batch=0",
        "check-every=0",
        "held-out=0",
        "held-out=0.6",
        "code-rate=2",
        "scale-rate=-0.1",
        "norm-rate=nan",
        "geometry=clean masked-weight=2",
    ],
)
def test_options_are_checked(option: str) -> None:
    with pytest.raises(InvalidPipeline, match="polish refuses"):
        build_plan(f"polish{{{option}}}", standard_registry())


class Rigid(Codec):
    """A codec that nobody can move."""

    name: ClassVar[str] = "rigid"

    @property
    def payload_bits(self) -> int:
        return 16 * self.rows * self.columns

    def specification(self) -> dict[str, ValueType]:
        return {"half": ValueType(dtype="f16", shape=(self.rows, self.columns))}

    def pack(self, working: Any) -> dict[str, Tensor]:
        return dict(working)

    def unpack(self, stored: Any) -> dict[str, Tensor]:
        return dict(stored)

    def dense(self, working: Any) -> Tensor:
        half: Tensor = working["half"]
        return half.float()


class Stiff(Lowered):
    """A layer in half precision."""

    tag: ClassVar[str] = "stiff"
    codec: Rigid

    def text(self) -> str:
        return "half precision"


class StiffLower(Spy):
    """Lower each layer to half precision."""

    name: ClassVar[str] = "stiff-lower"
    provides: ClassVar[Any] = (Stiff,)

    def run(self, unit: Unit) -> None:
        for node in unit.layers():
            ref = unit.put(f"{node.name}:half", unit.weight(node).half())
            codec = Rigid(rows=node.rows, columns=node.columns)
            unit.annotate(node, Stiff(codec=codec, tensors=(ref,), suffixes=("half",)))


def test_a_codec_without_a_relaxed_form_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    known = standard_registry()
    known.add(StiffLower)
    passes = f"stiff-lower,{POLISH.replace('OPTIONS', '')},pack"
    with pytest.raises(InvalidPipeline, match="layers stored as rigid cannot be polished"):
        run_passes(model, tmp_path, known, passes, calibration=text)


def test_batches_are_split_and_visited_in_rounds() -> None:
    step = Polish(held_out=0.25, iterations=10)
    assert step.split(8) == ([0, 1, 2, 3, 4, 5], [6, 7])
    assert step.split(2) == ([0], [1])
    assert step.split(1) == ([0], [0]), "a single batch is both"
    order = step.visits([0, 1, 2])
    assert sorted(order[:3]) == sorted(order[3:6]) == [0, 1, 2]
    assert len(order) >= 10
    assert order == step.visits([0, 1, 2])


def test_a_polished_layer_notes_its_new_error(model: Path, text: Path, tmp_path: Path) -> None:
    passes = STAGES.replace("SCALE", "16") + "POLISHpack"
    before, after = (
        run_passes(
            model, tmp_path / name, registry(), passes.replace("POLISH", step), calibration=text
        )
        for name, step in (("a", ""), ("b", POLISH.replace("OPTIONS", "") + ","))
    )
    for one, other in zip(before.layers, after.layers, strict=True):
        assert one.error is not None
        assert other.error is not None
        assert 0 < other.error != one.error
        assert sum(other.block_errors) == pytest.approx(other.error)
