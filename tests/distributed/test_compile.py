"""Whole compiles on several ranks give the artifact of one; ranks are threads here."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.compiling import job as jobs
from qdc.compiling.compiler import run_job
from qdc.distributed.world import World
from qdc.errors import InvalidCalibration
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.annotations import Moment
from qdc.ir.graph import Node
from qdc.pipeline.passbase import Pass
from qdc.pipeline.registry import Registry, standard_registry
from qdc.report.model import CompileReport
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import make_job, spying
from tests.support.ranks import on_ranks

SAMPLES = "samples=5 length=10 batch=1"
DEFAULT = (
    f"quantize-vocab,stages(rotate,calibrate-cross{{{SAMPLES}}},sensitivity{{damp=0.1}},"
    "abmp-allocate{ratio=0.5},daq-lower{asymmetry=1}),pack"
)
MEASURED = (
    f"calibrate-mcs{{{SAMPLES}}},sensitivity,measure-orders,probe-loss{{{SAMPLES}}},"
    "allocate{scope=model weights=loss},stages{order=outputs-first}"
    f"(calibrate-mcs{{{SAMPLES} masked-weight=3}},sensitivity,daq-lower{{feedback=false}}),"
    f"polish{{{SAMPLES} iterations=3}},pack"
)
PIPELINES = {
    "default": DEFAULT,
    "measured": MEASURED,
    "gptq": f"stages(calibrate-mcs{{{SAMPLES} timesteps=2}},sensitivity,gptq-lower),pack",
    "slim": f"stages(calibrate-mcs{{{SAMPLES}}},sensitivity{{block=8}},"
    f"slim-allocate{{{SAMPLES} damp-in-place=0.1}},slim-lower{{steps=4}}),pack",
    "regions": f"calibrate-mcs{{{SAMPLES}}},sensitivity,stages(abmp-allocate,daq-lower),pack",
    "data-free": "rtn-lower,pack",
    "sampled": f"stages(calibrate-cross{{{SAMPLES} geometry=tmas steps=3 token-weights=certainty}},"
    "sensitivity,gptq-lower{group=16}),pack",
    "tuned": f"guide{{{SAMPLES}}},stages(calibrate-cross{{{SAMPLES} token-weights=guided}},"
    f"sensitivity,gptq-lower{{group=16}}),distill{{{SAMPLES} rounds=1 held-out=0.5}},pack",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _one_trace_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.fx patches classes while it traces, which threads share."""
    lock, trace = threading.Lock(), open_model

    def traced(*arguments: Any) -> tuple[Checkpoint, Program]:
        with lock:
            return trace(*arguments)

    monkeypatch.setattr(jobs, "open_model", traced)


def compiled(
    model: Path,
    out: Path,
    passes: str,
    ranks: int,
    *,
    ordered: bool,
    registry: Registry | None = None,
    **options: Any,
) -> list[CompileReport]:
    """The report of each rank."""
    registry = registry or standard_registry()

    def work(world: World) -> CompileReport:
        job = make_job(model, out, registry, passes=passes, states="f32", **options)
        return run_job(job, None, world)

    return on_ranks(ranks, work, ordered=ordered)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("default", 6),
        ("measured", 2),
        ("gptq", 3),
        ("slim", 3),
        ("regions", 2),
        ("data-free", 2),
        ("sampled", 2),
        pytest.param("tuned", 3, marks=pytest.mark.slow),
    ],
)
def test_ordered_sums_give_the_bytes_of_one_process(
    name: str, ranks: int, model: Path, tmp_path: Path
) -> None:
    """Five batches: of six ranks one has none."""
    (one,) = compiled(model, tmp_path / "one", PIPELINES[name], 1, ordered=True)
    first, *others = compiled(model, tmp_path / "many", PIPELINES[name], ranks, ordered=True)
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert all(report == first for report in others)
    assert (one.processes, one.sent_bytes) == (1, 0)
    assert first.processes == ranks
    assert first.sent_bytes > 0
    assert first.remarks == one.remarks
    assert first.layers == one.layers


@pytest.mark.parametrize("pack", [{"pack": "pad"}, {"isolate": True}])
def test_segments_go_where_their_samples_go(
    pack: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "texts.jsonl"
    texts = [f"def f(x{n}):\n    return {'x + ' * (n % 3)}{n}\n" for n in range(8)]
    text.write_text("\n".join(json.dumps({"text": each}) for each in texts))
    passes = DEFAULT.replace("length=10", "length=20")
    for ranks in (1, 3):
        compiled(
            model, tmp_path / str(ranks), passes, ranks, ordered=True, calibration=text, **pack
        )
    assert files(tmp_path / "1") == files(tmp_path / "3")


def test_reduced_sums_give_the_structure_and_nearly_the_scales(model: Path, tmp_path: Path) -> None:
    compiled(model, tmp_path / "one", DEFAULT, 1, ordered=False)
    compiled(model, tmp_path / "many", DEFAULT, 3, ordered=False)
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_pass_that_knows_nothing_of_ranks_sees_everything(model: Path, tmp_path: Path) -> None:
    """It streams all samples on every rank, and reads moments that other ranks own."""
    seen: list[tuple[str, int, float]] = []

    def look(label: str, unit: Unit) -> None:
        stream = unit.stream(lambda: list(torch.split(torch.arange(3, 27).reshape(4, 6), 1)))
        for stage, (node, *_) in unit.layers_by_stage():
            stream.enter(stage)
            count = sum(len(value) for value in stream.values(stage))
            assert unit.total(stream, count) == [count]
            trace = float(unit.get(unit.graph.require(node.name, Moment).tensor).trace())
            seen.append((node.name, count, trace))

    passes = f"stages(calibrate-mcs{{{SAMPLES}}},spy,rtn-lower),pack"
    registry = spying(look)
    compiled(model, tmp_path / "one", passes, 1, ordered=True, registry=registry)
    alone = sorted(seen)
    seen.clear()
    compiled(model, tmp_path / "two", passes, 2, ordered=True, registry=registry)
    assert sorted(seen) == sorted([*alone, *alone])
    assert {count for _, count, _ in seen} == {4}
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_ranks_that_draw_other_samples_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdc.passes.calibrate_mcs import CalibrateMcs

    def work(world: World) -> CompileReport:
        registry = standard_registry()
        job = make_job(model, tmp_path / "out", registry, passes=PIPELINES["gptq"])
        drawn[threading.get_ident()] = world.rank
        return run_job(job, None, world)

    drawn: dict[int, int] = {}
    draw = CalibrateMcs.draw

    def other(self: CalibrateMcs, unit: Unit) -> object:
        seeded = self.model_copy(update={"seed": drawn[threading.get_ident()]})
        return draw(seeded, unit)

    monkeypatch.setattr(CalibrateMcs, "draw", other)
    with pytest.raises(InvalidCalibration, match="drawn different samples"):
        on_ranks(2, work)
    assert not (tmp_path / "out").exists()


def test_only_the_first_rank_leaves_files(model: Path, tmp_path: Path) -> None:
    class Fail(Pass):
        """Fail on one rank."""

        name = "fail"

        def run(self, unit: Unit) -> None:
            unit.share(unit.layers(), self.work)

        def work(self, layers: tuple[Node, ...]) -> None:
            if "blocks.0.k_proj" in [node.name for node in layers]:
                raise ZeroDivisionError("of one rank")

    registry = standard_registry()
    registry.add(Fail)
    with pytest.raises(ZeroDivisionError) as caught:
        compiled(
            model, tmp_path / "out", "rtn-lower,fail,pack", 3, ordered=False, registry=registry
        )
    (note,) = caught.value.__notes__
    assert "repro" in note
    assert [path.name for path in tmp_path.iterdir()] == ["out-repro"]
    assert "of one rank" in (tmp_path / "out-repro" / "error.txt").read_text()
