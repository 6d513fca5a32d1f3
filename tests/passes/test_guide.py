"""guide: weights are the squared derivatives of a plain model; equal ones change no bit."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidCalibration, InvalidPipeline, MissingAnnotation
from qdc.ir.annotations import Moment
from qdc.ir.guidance import Guidance
from qdc.numerics.random_numbers import uniforms
from qdc.passkit.drawn import drawn_slope
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.planning.configure import configure
from qdc.planning.options import PlanOptions
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import Spy, run_passes
from tests.support.families import CASES, write_family
from tests.support.looks import looked
from tests.support.outlooks import forecast_tiny
from tests.support.slopes import drawn_slopes

SAMPLES = "samples=8 length=16 pack=within batch=3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32, vocab=2048)


ENDING = "rtn-lower,pack"


@pytest.mark.parametrize(
    ("family", "options"), [("llada", ""), ("llada", " geometry=clean"), ("dream", "")]
)
def test_weights_are_squared_derivatives_of_the_whole_model(
    family: str, options: str, model: Path, text: Path, tmp_path: Path
) -> None:
    if family == "dream":
        model = write_family(tmp_path, CASES["dream"], dtype=torch.float32)
    weighed = f"{{{SAMPLES}{options} token-weights=guided}}"
    passes = f"guide{{{SAMPLES}{options} exponent=1}},calibrate-mcs{weighed},look,{ENDING}"
    found = looked(model, text, tmp_path / "run", passes, Guidance)
    weighing = found.tensors(Guidance)
    (tokens,) = found.tokens
    one = "0.self_attn." if family == "dream" else "0."
    places = [
        sorted(name for name in weighing if f".{one}{part}" in name)
        for part in (("q_proj",) if family == "dream" else ("ff_proj",))
    ]
    names = places[0]
    beside = ("k_proj", "v_proj") if family == "dream" else ("up_proj",)
    names += [names[0].rpartition(".")[0] + f".{other}" for other in beside]
    everywhere = "clean" in options
    shift = 1 if family == "dream" and not everywhere else 0
    slopes, _ = drawn_slopes(model, tokens, names, shift=shift, everywhere=everywhere)
    expected = torch.stack([each.square().sum(-1) for each in slopes.values()]).sum(0)
    for name in names:
        weights = weighing[name]
        assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(weights, expected / expected.mean(), rtol=1e-3, atol=1e-3)
    assert float(expected.std()) > 0.1 * float(expected.mean())


@pytest.mark.parametrize("masked", [" masked-weight=3", pytest.param("", marks=pytest.mark.slow)])
def test_equal_weights_give_the_plain_moment_bit_for_bit(
    masked: str, model: Path, text: Path, tmp_path: Path
) -> None:
    found = []
    for name, start, option in (("a", f"guide{{{SAMPLES} exponent=0}},", "guided"), ("b", "", "")):
        weighed = f" token-weights={option}" if option else ""
        passes = f"{start}stages(calibrate-cross{{{SAMPLES}{masked}{weighed}}},look,rtn-lower)"
        found.append(looked(model, text, tmp_path / name, f"{passes},pack", Moment).tensors(Moment))
    one, two = found
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_guided_moment_counts_every_token_by_its_weight(
    model: Path, text: Path, tmp_path: Path
) -> None:
    passes = f"guide{{{SAMPLES}}},calibrate-mcs{{{SAMPLES} token-weights=guided}},look"
    found = looked(model, text, tmp_path, f"{passes},{ENDING}", Guidance, Moment)
    moments, weights = found.tensors(Moment), found.tensors(Guidance)
    (name,) = (n for n in moments if n.endswith("blocks.0.q_proj"))
    module = load_checkpoint(model, "cpu", torch.float32)
    seen: list[Tensor] = []
    module.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(found.tokens[0])
    inputs, counts = seen[0].flatten(0, 1).double(), weights[name].flatten().double()
    expected = (inputs * counts[:, None]).T @ inputs / counts.sum()
    torch.testing.assert_close(moments[name].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_slope_is_prediction_less_the_token_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2000, 4, generator=generator)[:1].expand(2000, 4).contiguous()
    head = {"weight": torch.randn(6, 4, generator=generator)}
    slopes, _ = drawn_slope(hidden, head, uniforms(2000, "drawn"))
    predicted = (hidden[:1].double() @ head["weight"].double().T).softmax(-1)
    kinds = (predicted - torch.eye(6).double()) @ head["weight"].double()
    nearest = torch.cdist(slopes.double(), kinds)
    assert float(nearest.min(1).values.max()) < 1e-5
    counts = torch.bincount(nearest.argmin(1), minlength=6) / 2000
    torch.testing.assert_close(counts.double(), predicted[0], rtol=0, atol=0.04)


class OfOthers(Spy):
    """Say that guide has seen other samples."""

    name: ClassVar[str] = "of-others"

    def run(self, unit: Unit) -> None:
        for node in unit.layers():
            note = unit.graph.require(node.name, Guidance)
            unit.annotate(node, note.model_copy(update={"states": "0" * 64}))


def test_weights_of_other_samples_are_refused(model: Path, text: Path, tmp_path: Path) -> None:
    known = standard_registry()
    known.add(OfOthers)
    passes = f"guide{{{SAMPLES}}},of-others,calibrate-mcs{{{SAMPLES} token-weights=guided}}"
    with pytest.raises(InvalidCalibration, match="guide has weighed other samples than calibrate"):
        run_passes(model, tmp_path, known, f"{passes},rtn-lower,pack", calibration=text)


READS = "calibrate-mcs{token-weights=guided}"


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("guide,calibrate-mcs", "no calibration behind it asks for the weights"),
        (f"guide,guide,{READS}", "no calibration behind it asks for the weights"),
        (f"guide{{samples=6}},{READS}", "samples: 6 and 128"),
        (f"guide{{length=16}},{READS}", "length: 16 and none"),
        (f"guide{{seed=2}},{READS}", "seed: 2 and 0"),
        (f"guide{{geometry=clean}},{READS}", "geometry: clean and mcs"),
        (f"guide{{pack=pad}},{READS}", "pack: pad and documents"),
        (f"guide,{READS},stages(calibrate-cross{{token-weights=guided seed=1}})", "seed: 0 and 1"),
    ],
)
def test_weights_unread_or_of_other_samples_are_refused_before_a_run(
    passes: str, said: str
) -> None:
    with pytest.raises(InvalidPipeline, match=re.escape(said)):
        check_order(build_plan(passes, standard_registry()))


def test_a_guide_is_asked_for_and_may_be_the_last_pass_of_a_part() -> None:
    registry = standard_registry()
    with pytest.raises(MissingAnnotation, match="calibrate-mcs reads @guidance"):
        check_order(build_plan(READS, registry))
    check_order(build_plan(f"guide{{batch=2 geometry=mcs}},{READS},guide,{READS}", registry))
    options = PlanOptions.parse(model_dir=".", passes=f"guide,{READS},rtn-lower,pack")
    plan, _ = configure(options, registry, stop_after="guide")
    assert str(plan) == "guide"


def test_tokens_of_experts_count_alike(text: Path, tmp_path: Path) -> None:
    experts = write_family(tmp_path / "experts", CASES["llada-moe"], dtype=torch.float32)
    passes = f"guide{{{SAMPLES}}},calibrate-mcs{{{SAMPLES} token-weights=guided}},look"
    found = looked(experts, text, tmp_path / "run", f"{passes},{ENDING}", Guidance)
    for name, weights in found.tensors(Guidance).items():
        assert bool((weights == 1).all()) == (".experts." in name), name


def test_samples_that_wait_together_change_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    known: list[dict[str, Tensor]] = []
    for waiting in ("", " waiting=4"):
        passes = f"guide{{{SAMPLES}{waiting}}},calibrate-mcs{{{SAMPLES} token-weights=guided}},look"
        found = looked(model, text, tmp_path / f"run{len(known)}", f"{passes},{ENDING}", Guidance)
        known.append(found.tensors(Guidance))
    one, two = known
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_samples_that_are_computed_together_draw_the_same_tokens(
    model: Path, text: Path, tmp_path: Path
) -> None:
    known: list[dict[str, Tensor]] = []
    for batch in (1, 4):
        samples = f"{SAMPLES.removesuffix('batch=3')}batch={batch}"
        passes = f"guide{{{samples}}},calibrate-mcs{{{samples} token-weights=guided}},look"
        found = looked(model, text, tmp_path / f"run{batch}", f"{passes},{ENDING}", Guidance)
        known.append(found.tensors(Guidance))
    one, two = known
    assert all(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5) for name in one)


def test_it_is_foreseen(model: Path) -> None:
    passes = "guide,stages(calibrate-cross{token-weights=guided},rtn-lower),pack"
    assert not forecast_tiny(model, passes).unknown
