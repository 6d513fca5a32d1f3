"""Curvatures of rows of embedding and head: what guide notes, and what is rounded by them."""

import math
import re
from pathlib import Path
from typing import cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidPipeline, MissingAnnotation, NotFinite
from qdc.ir.curvature import RowCurvature
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.types import Parameter, TensorRef
from qdc.numerics.factor import factorize
from qdc.passes.quantize_vocab import QuantizeVocab
from qdc.passkit import UniformGrid
from qdc.passkit.row_curvatures import RowCurvatures
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import run_passes
from tests.support.graphs import linear, ref, structure, value
from tests.support.looks import Looked, looked
from tests.support.outlooks import forecast_tiny
from tests.support.slopes import drawn_slopes
from tests.support.units import FACTS, correlated_moment, noise

SAMPLES = "samples=8 length=16 pack=within batch=3"
BEHIND = f"calibrate-mcs{{{SAMPLES}}},rtn-lower,pack"


def curved(model: Path, text: Path, folder: Path, options: str = "") -> Looked:
    passes = (
        f"guide{{{SAMPLES} vocabulary=true{options}}},quantize-vocab{{bits=4 rounding=guided}},"
        f"calibrate-mcs{{{SAMPLES}}},look,rtn-lower,pack"
    )
    return looked(model, text, folder, passes, RowCurvature)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32, vocab=2048)


def head_curvature(model: Path, head: str, tokens: Tensor) -> Tensor:
    """Sum over masked positions of (1 - sum p^2) h h^T, by the plain model."""
    module, seen = load_checkpoint(model, "cpu", torch.float32), list[Tensor]()
    found = module.get_submodule(head)
    found.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        predicted = module(tokens)[tokens == MASK].softmax(-1)
    (hidden,) = seen
    read = hidden[tokens == MASK]
    curvature: Tensor = (read * (1 - predicted.square().sum(-1, keepdim=True))).T @ read
    return curvature


@pytest.mark.parametrize("options", ["", " waiting=4"])
def test_it_is_that_of_the_whole_model(
    options: str, model: Path, text: Path, tmp_path: Path
) -> None:
    look = curved(model, text, tmp_path, options)
    (tokens,) = look.tokens
    embedding, head = sorted(look.notes[RowCurvature], key=lambda name: not name.endswith("wte"))
    slopes, count = drawn_slopes(model, tokens, [embedding])
    flat = slopes[embedding].flatten(0, 1)
    wanted = {embedding: flat.T @ flat, head: head_curvature(model, head, tokens)}
    for name, (found, note) in look.notes[RowCurvature].items():
        tolerance = 1e-4 * float(found.max())
        torch.testing.assert_close(found, wanted[name] / count, rtol=1e-3, atol=tolerance)
        assert note.positions == count
        assert note.size == pytest.approx(float(found.diagonal().mean()), rel=1e-5)


class Told:
    """Stands in for a unit: keeps what is written and remarked."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.notes: dict[str, RowCurvature] = {}
        self.missed: list[str] = []
        self.graph = vocabulary("out.weight")

    def put_aside(self, name: str, tensor: Tensor) -> TensorRef:
        self.kept[name] = tensor
        return ref(name, *tensor.shape)

    def annotate(self, node: Node, note: RowCurvature) -> None:
        self.graph.annotate(node.name, note)
        self.notes[node.name] = note

    def get(self, tensor: TensorRef) -> Tensor:
        return self.kept[tensor.name]

    def remark(self, kind: str, node: Node, **details: object) -> None:
        assert kind == "missed"
        assert details["reason"]
        self.missed.append(node.name)


def vocabulary(head: str) -> LayerGraph:
    """An embedding and a head outside of any region; ``head`` is its parameter."""
    wte = Node(
        name="wte",
        op="embedding",
        inputs=("ids",),
        type=value("B", "L", 4),
        path="wte",
        parameters=(Parameter(name="wte.weight", dtype="f32", shape=(8, 4)),),
    )
    out = linear("out", "wte", 8, 4)
    out = out.model_copy(update={"parameters": (Parameter(name=head, dtype="f32", shape=(8, 4)),)})
    ids = Node(name="ids", op="input", type=value("B", "L", dtype="i64"))
    return LayerGraph(structure([ids, wte, out]).model_copy(update={"model": FACTS}))


def test_a_tied_matrix_has_the_sum() -> None:
    slopes, hidden, unsure = noise(6, 4), noise(5, 4), torch.linspace(0, 1, 5)
    wanted = slopes.T @ slopes, (hidden * unsure[:, None]).T @ hidden
    found = {}
    for head in ("out.weight", "wte.weight"):
        bends, told = RowCurvatures(vocabulary(head), "out"), Told()
        bends.add_embedding({"wte": slopes.view(2, 3, 4), "mask": torch.ones(2)})
        bends.add_head(hidden, unsure)
        bends.write(cast(Unit, told), 5)
        assert not told.missed
        found[head] = {name.partition(":")[0]: 5 * kept for name, kept in told.kept.items()}
    torch.testing.assert_close(found["out.weight"], dict(zip(("wte", "out"), wanted, strict=True)))
    torch.testing.assert_close(found["wte.weight"], {"wte": wanted[0] + wanted[1]})


def test_matrices_of_which_nothing_is_known_are_told() -> None:
    bends, told = RowCurvatures(vocabulary("out.weight"), "out"), Told()
    bends.add_embedding({})
    bends.add_head(noise(5, 4), torch.zeros(5))
    bends.write(cast(Unit, told), 5)
    assert sorted(told.missed) == ["out", "wte"]
    assert not told.notes


def test_a_matrix_of_which_nothing_is_known_is_rounded_to_the_nearest_and_told() -> None:
    told, step = Told(), QuantizeVocab(bits=4, rounding="guided")
    lower, _ = step.lowering(cast(Unit, told), told.graph["wte"])
    assert told.missed == ["wte"]
    weight, codec = noise(8, 4), step.codec(told.graph["wte"])
    torch.testing.assert_close(lower(weight, codec), step.lower(weight, codec), rtol=0, atol=0)


def test_damping_decides_what_columns_take_over() -> None:
    bends, told = RowCurvatures(vocabulary("out.weight"), "out"), Told()
    bends.add_head(correlated_moment(4).float(), torch.ones(4))
    bends.write(cast(Unit, told), 4)
    node, weight, found = told.graph["out"], noise(8, 4), []
    for damp in (0.01, 10):
        step = QuantizeVocab(bits=4, rounding="guided", damp=damp)
        lower, _ = step.lowering(cast(Unit, told), node)
        found.append(lower(weight, step.codec(node))["codes"])
    assert not torch.equal(*found)


def test_a_curvature_that_is_not_finite_is_refused() -> None:
    bends = RowCurvatures(vocabulary("out.weight"), "out")
    bends.add_head(torch.full((2, 4), math.inf), torch.ones(2))
    with pytest.raises(NotFinite, match="by more than fp32 can hold") as caught:
        bends.write(cast(Unit, Told()), 5)
    assert caught.value.where == ("%out",)


def test_later_columns_take_errors_over() -> None:
    curvature, weight = correlated_moment(24), noise(40, 24)
    codec = UniformGrid(rows=40, columns=24, group=24, bits=4)
    step = QuantizeVocab(bits=4, rounding="guided")
    guided = step.feedback(factorize(curvature, 0.1).upper, weight, codec)
    costs = []
    for working in (guided, step.lower(weight, codec)):
        error = codec.dense(working) - weight
        costs.append(float(((error @ curvature) * error).sum()))
    assert costs[0] < 0.6 * costs[1]


def test_what_is_stored_keeps_its_form(model: Path, text: Path, tmp_path: Path) -> None:
    known, sizes = standard_registry(), list[dict[str, int]]()
    for passes in (
        f"quantize-vocab{{bits=4}},{BEHIND}",
        f"guide{{{SAMPLES} vocabulary=true}},quantize-vocab{{bits=4 rounding=guided}},{BEHIND}",
    ):
        folder = tmp_path / str(len(sizes))
        run_passes(model, folder, known, passes, calibration=text)
        sizes.append({p.name: p.stat().st_size for p in folder.rglob("*.safetensors")})
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (f"guide{{vocabulary=true}},{BEHIND}", "vocabulary=true} notes curvatures that no pass"),
        (f"guide{{vocabulary=true}},quantize-vocab,{BEHIND}", "rounding=guided to quantize-vocab"),
    ],
)
def test_a_curvature_that_nobody_reads_is_refused(passes: str, said: str) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        check_order(build_plan(passes, standard_registry()))
    assert said in f"{caught.value} {caught.value.help}"


def test_guided_rounding_asks_for_a_guide() -> None:
    with pytest.raises(MissingAnnotation, match="quantize-vocab reads @row-curvature"):
        check_order(build_plan(f"quantize-vocab{{rounding=guided}},{BEHIND}", standard_registry()))
    with pytest.raises(ValidationError, match=re.escape("rounding=nearest does not read damp")):
        QuantizeVocab(damp=0.5)


def test_it_is_foreseen(model: Path) -> None:
    passes = "guide{vocabulary=true},quantize-vocab{bits=4 rounding=guided},calibrate-mcs"
    passes += ",rtn-lower,pack"
    assert not forecast_tiny(model, passes).unknown
