"""Names of checkpoints against names of modules: every tensor placed, explained, or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint, UnsupportedModel
from qdc.frontend.coverage import check_tensors, coverage
from qdc.frontend.exported import trace_native
from qdc.frontend.naming import match_tensors
from qdc.frontend.native import NativeModel, build_native, native_facts
from qdc.frontend.tracer import Program
from tests.support.natives import Tensors, rewrite, write_native

EMBEDDING, HEAD = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NativeModel, Program]:
    folder = write_native(tmp_path_factory.mktemp("bert") / "model", "bert")
    native = build_native(Checkpoint(folder).config)
    return folder, native, trace_native(native, native_facts(native, folder))


def matched(
    bert: tuple[Path, NativeModel, Program],
    folder: Path,
    edit: Callable[[Tensors], Tensors],
) -> Checkpoint:
    """The checkpoint with other tensors, under the names of the module."""
    source, native, program = bert
    checkpoint = Checkpoint(rewrite(source, folder, edit))
    match_tensors(native, checkpoint)
    check_tensors(program.graph, checkpoint)
    return checkpoint


def test_old_names_of_norms_are_known(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    def age(tensors: Tensors) -> Tensors:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

        def rename(name: str) -> str:
            for new, before in old.items():
                name = name.replace(new, before)
            return name

        return {rename(name): tensor for name, tensor in tensors.items()}

    found = matched(bert, tmp_path / "old", age)
    name = "bert.encoder.layer.1.output.LayerNorm.weight"
    assert found.headers[name].name == name
    assert torch.equal(found.tensor(name), Checkpoint(bert[0]).tensor(name))
    assert found.scan() == matched(bert, tmp_path / "new", lambda tensors: tensors).scan()


def test_a_base_model_without_its_prefix_is_known(tmp_path: Path) -> None:
    source = write_native(tmp_path / "model", "qwen2")
    folder = rewrite(
        source, tmp_path / "bare", lambda t: {n.removeprefix("model."): x for n, x in t.items()}
    )
    native, checkpoint = build_native(Checkpoint(folder).config), Checkpoint(folder)
    match_tensors(native, checkpoint)
    assert set(checkpoint.headers) == set(Checkpoint(source).headers)


def test_what_wrappers_put_in_front_is_known(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    def wrap(tensors: Tensors) -> Tensors:
        return {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}

    found = matched(bert, tmp_path / "wrapped", wrap)
    assert set(found.headers) == set(Checkpoint(bert[0]).headers)


def test_a_tied_head_may_stand_there_twice(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    found = matched(bert, tmp_path / "twice", lambda t: {**t, HEAD: t[EMBEDDING].clone()})
    assert found.left_out[HEAD][1] == f"the same tensor as {EMBEDDING}"
    assert HEAD not in found
    assert found.scan()
    alone = matched(
        bert,
        tmp_path / "alone",
        lambda t: {HEAD: t[EMBEDDING], **{n: x for n, x in t.items() if n != EMBEDDING}},
    )
    assert not alone.left_out
    assert torch.equal(alone.tensor(EMBEDDING), found.tensor(EMBEDDING))


def test_tied_tensors_that_differ_are_refused(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    found = matched(bert, tmp_path / "apart", lambda t: {**t, HEAD: t[EMBEDDING] + 1})
    with pytest.raises(InvalidCheckpoint, match="ties are not equal") as caught:
        found.scan()
    assert caught.value.where == (f"{HEAD}, {EMBEDDING}",)
    assert "tie_word_embeddings" in caught.value.help


def test_heads_of_other_tasks_and_old_buffers_are_left_out_with_the_reason(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    extra = {
        "bert.pooler.dense.weight": torch.zeros(32, 32),
        "bert.pooler.dense.bias": torch.zeros(32),
        "cls.seq_relationship.weight": torch.zeros(2, 32),
        "bert.embeddings.position_ids": torch.arange(40)[None],
    }
    found = matched(bert, tmp_path / "extra", lambda t: {**t, **extra})
    assert set(found.left_out) == set(extra)
    spare = {row.tensor: row for row in coverage(bert[2].graph, found) if row.status == "left out"}
    assert set(spare) == set(extra)
    assert spare["bert.pooler.dense.weight"].weights == 32 * 32
    assert "BertForPreTraining" in spare["cls.seq_relationship.weight"].reason
    assert "computes itself" in spare["bert.embeddings.position_ids"].reason


def test_what_nothing_explains_is_refused(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    with pytest.raises(InvalidCheckpoint, match="1 tensor is unmapped") as caught:
        matched(bert, tmp_path / "odd", lambda t: {**t, "bert.odd.weight": torch.zeros(2)})
    assert caught.value.where == ("bert.odd.weight",)
    with pytest.raises(InvalidCheckpoint, match="lacks 1 tensor "):
        matched(bert, tmp_path / "less", lambda t: {n: x for n, x in t.items() if n != EMBEDDING})


def test_two_tensors_for_one_place_are_refused(
    bert: tuple[Path, NativeModel, Program], tmp_path: Path
) -> None:
    name = "bert.embeddings.LayerNorm.gamma"
    with pytest.raises(InvalidCheckpoint, match="have one place in the model") as caught:
        matched(bert, tmp_path / "both", lambda t: {**t, name: torch.ones(32)})
    assert name in caught.value.where


def test_stacked_experts_of_another_shape_find_no_place(tmp_path: Path) -> None:
    """Two of three, as a pruned checkpoint may have them."""

    def fuse(tensors: Tensors) -> Tensors:
        start = "model.layers.0.mlp.experts."
        kept = {name: x for name, x in tensors.items() if not name.startswith(start)}
        parts = [tensors[f"{start}{e}.down_proj.weight"] for e in range(2)]
        return {**kept, f"{start}down_proj": torch.stack(parts)}

    source = write_native(tmp_path / "model", "qwen3-moe")
    checkpoint = Checkpoint(rewrite(source, tmp_path / "fused", fuse))
    with pytest.raises(InvalidCheckpoint, match="do not have the shape") as caught:
        match_tensors(build_native(checkpoint.config), checkpoint)
    assert caught.value.where[0].startswith("model.layers.0.mlp.experts.down_proj: ")
    assert "see that config.json belongs to them" in caught.value.help


def test_what_transformers_would_compute_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without unrolling, as for experts that ``unroll_experts`` does not know."""
    monkeypatch.setattr("qdc.frontend.native.unroll_experts", lambda body: None)
    checkpoint = Checkpoint(write_native(tmp_path / "model", "qwen3-moe"))
    native = build_native(checkpoint.config)
    with pytest.raises(UnsupportedModel, match="computes its tensors") as caught:
        match_tensors(native, checkpoint)
    assert "model.layers.0.mlp.experts.0.down_proj.weight" in caught.value.where
