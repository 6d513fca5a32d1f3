"""Compiles of documents that stand alone: padding is in no statistic, whatever stands there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import qdc
from qdc.errors import InvalidCalibration, QdcError, UnsupportedModel
from qdc.frontend.opening import open_model
from qdc.ir.annotations import Moment
from qdc.ir.costs import LossSensitivity
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passkit import samples
from qdc.pipeline.registry import standard_registry
from qdc.streaming.account import Account
from qdc.streaming.ledger import Ledger
from qdc.streaming.streamforecast import StreamForecast
from qdc.streaming.unit import Unit
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.compiles import compile_tiny, run_passes, spying
from tests.support.experts import write_mixture
from tests.support.families import CASES, write_family
from tests.support.outlooks import forecast_tiny
from tests.support.threads import one_thread

__all__ = ["one_thread"]

OPTIONS: dict[str, Any] = {"pack": "pad", "samples": 6, "length": 24}
ALL = (
    "calibrate-mcs{masked-weight=2},sensitivity,measure-orders,probe-loss{probes=3},"
    "allocate{scope=model weights=loss},stages(calibrate-cross,sensitivity,daq-lower{asymmetry=1}),"
    "polish{iterations=4 check-every=2},pack"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padding") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, vocab=2048, dtype=torch.float32)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("padding") / "texts.jsonl"
    texts = [f"def f{n}(x):\n    return {'x + ' * (n % 3)}{n}\n" for n in range(9)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def fill_with(monkeypatch: pytest.MonkeyPatch, token: int) -> None:
    monkeypatch.setattr(samples, "filling", lambda *_: token)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_token_behind_documents_changes_no_byte(
    kind: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = ALL
    if kind == "mixture":
        model = write_mixture(tmp_path / "mixture")
        passes = "stages(calibrate-cross,rtn-lower),polish{iterations=2 check-every=1},pack"
    found = []
    for token in (0, 37):
        fill_with(monkeypatch, token)
        out = tmp_path / str(token)
        report = compile_tiny(model, out, passes, calibration=text, **OPTIONS)
        found.append(contents(out))
        (use,) = report.calibration_text
        assert use.padding > 0
    assert found[0] == found[1]


def test_more_padding_changes_no_statistic(model: Path, text: Path, tmp_path: Path) -> None:
    encode = encoder(load_tokenizer(EMBEDDED))
    sizes = [len(encode(json.loads(line)["text"])) for line in text.read_text().splitlines()]
    assert max(sizes) <= 24
    (moments, losses), (longer, same) = (
        notes_of(model, text, tmp_path / str(length), length) for length in (24, 33)
    )
    for name, (note, moment) in moments.items():
        other, expected = longer[name]
        assert note.tokens == other.tokens < 6 * 24
        assert note.masked == other.masked
        torch.testing.assert_close(moment, expected, rtol=1e-4, atol=1e-6)
    for name, loss in losses.items():
        assert loss.positions == same[name].positions
        assert loss.rise == pytest.approx(same[name].rise, rel=1e-3, abs=1e-9)
        assert loss.error == pytest.approx(same[name].error, rel=1e-3)
    assert polished(model, text, tmp_path / "a", 24) == pytest.approx(
        polished(model, text, tmp_path / "b", 33), rel=1e-3
    )


Moments = dict[str, tuple[Moment, Tensor]]
Losses = dict[str, LossSensitivity]


def notes_of(model: Path, text: Path, folder: Path, length: int) -> tuple[Moments, Losses]:
    """Moments, and what probes of each layer cost."""
    moments: Moments = {}
    losses: Losses = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            if label == "moments":
                note = unit.graph.require(node.name, Moment)
                moments[node.name] = note, unit.get(note.tensor).clone()
            else:
                losses[node.name] = unit.graph.require(node.name, LossSensitivity)

    passes = "calibrate-mcs,spy{label=moments},probe-loss{probes=3},spy-all"
    asked = {**OPTIONS, "length": length, "calibration": text, "stop_after": "spy-all"}
    run_passes(model, folder, spying(look), passes, **asked)
    assert moments.keys() == losses.keys()
    return moments, losses


def polished(model: Path, text: Path, out: Path, length: int) -> list[float]:
    """Losses of the regions on held-out samples, before and after."""
    passes = "stages(calibrate-mcs,rtn-lower),polish{iterations=2 check-every=1 batch=2},pack"
    report = compile_tiny(model, out, passes, calibration=text, **{**OPTIONS, "length": length})
    shown = re.compile(r" region_loss_before=(\S+) region_loss=(\S+)")
    losses = [loss for line in report.remarks for pair in shown.findall(line) for loss in pair]
    assert losses
    return [float(loss) for loss in losses]


def test_an_interrupted_compile_goes_on_with_its_segments(
    model: Path, text: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "run the passes" and done > total // 2:
            raise Stopped

    passes = "stages(calibrate-cross,sensitivity,abmp-allocate,daq-lower{asymmetry=1}),pack"
    asked = {"calibration": text, **OPTIONS}
    compile_tiny(model, tmp_path / "whole", passes, **asked)
    with pytest.raises(Stopped):
        compile_tiny(model, tmp_path / "parts", passes, progress=stop, **asked)
    compile_tiny(model, tmp_path / "parts", passes, resume=True, **asked)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_rollouts_and_records_are_padded(model: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [{"prompt": f"add {n} and {n}", "answer": f"it is {n + n}"} for n in range(9)]
    chats.write_text("\n".join(map(json.dumps, lines)))
    passes = "stages(calibrate-mcs{geometry=rollout steps=4},rtn-lower),pack"
    report = compile_tiny(
        model, tmp_path / "out", passes, calibration=chats, chat_fields="prompt,answer", **OPTIONS
    )
    (use,) = report.calibration_text
    assert (use.pack, use.of_records, use.used) == ("pad", True, 6)


def test_isolated_documents_compile_and_differ_from_joined(
    model: Path, text: Path, tmp_path: Path
) -> None:
    passes = "stages(calibrate-mcs,rtn-lower),spy"
    found: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        if unit.layers()[0].name.startswith("blocks.1"):
            note = unit.graph.require(unit.layers()[0].name, Moment)
            found.append(unit.get(note.tensor).clone())

    for isolate in (False, True):
        run_passes(
            model, tmp_path, spying(look), passes.replace("rtn-lower),spy", "spy,rtn-lower)"),
            calibration=text, samples=3, length=24, isolate=isolate, stop_after="spy",
        )  # fmt: skip
    half = len(found) // 2
    assert not torch.allclose(found[0], found[half])


def refused(call: Callable[[], object]) -> QdcError:
    with pytest.raises(UnsupportedModel) as caught:
        call()
    return caught.value


def test_blocks_of_attention_refuse_isolate_in_plan_and_compile(text: Path, tmp_path: Path) -> None:
    model = write_family(tmp_path / "sdar", CASES["sdar"])
    asked: dict[str, Any] = {"calibration": text, "samples": 3, "length": 24, "isolate": True}
    passes = "stages(calibrate-mcs,rtn-lower),pack"
    errors = [
        refused(lambda: qdc.compile(model, passes, out=tmp_path / "out", **asked)),
        refused(lambda: forecast_tiny(model, passes, **asked)),
    ]
    assert all("goes by blocks" in error.what for error in errors)
    qdc.compile(model, passes, out=tmp_path / "out", **{**asked, "isolate": None, "pack": "pad"})


def test_a_plan_says_what_is_padded(text: Path) -> None:
    passes = "stages(calibrate-mcs,rtn-lower),pack"
    asked: dict[str, Any] = {"calibration": text, "samples": 8, "length": 256}
    padded = forecast_tiny(EMBEDDED, passes, pack="pad", **asked)
    (use,) = padded.calibration_text
    assert use.padding > 8 * 200
    assert any("positions are padding" in warning for warning in padded.warnings)


def test_a_forecast_counts_the_mask_where_attention_runs(model: Path) -> None:
    _, program = open_model(model)
    first, second = program.graph.regions[0].stages[:2]
    found = []
    for segmented in (False, True):
        account = Account(program, Ledger(shared=True), held=4, returns=False)
        stream = StreamForecast(
            account, (0, True), lambda nbytes, work: None, 6, 40, 3, segmented=segmented
        )
        stream.enter(first)
        found.append(stream.cost((second.value,))[0])
    assert found[1] - found[0] == 5 * 3 * 40**2


def test_a_second_stream_that_forgets_padding_is_refused(
    model: Path, text: Path, tmp_path: Path
) -> None:
    class Forgets(CalibrateMcs):
        """Makes its reference of the tokens alone."""

        name: ClassVar[str] = "forgets"

        def run(self, unit: Unit) -> None:
            stream = unit.stream(lambda: self.draw(unit).batches(self.batch))
            unit.reference(lambda: list(torch.split(stream.tokens, self.batch)))

    registry = standard_registry()
    registry.add(Forgets)
    with pytest.raises(InvalidCalibration, match="its other stream does not") as caught:
        run_passes(model, tmp_path, registry, "forgets,rtn-lower,pack", calibration=text, **OPTIONS)
    assert "stream.samples" in str(caught.value.help)
