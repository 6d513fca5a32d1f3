"""Checkpoints of our families as wrappers, base models and older versions have saved them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint
from qdc.frontend.coverage import coverage
from qdc.frontend.opening import open_model
from qdc.runtime.load import load_checkpoint
from tests.support.families import CASES, write_family

State = dict[str, Tensor]
TIED = "fast-dllm tied"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def written(folder: Path, name: str, edit: Callable[[State], None] | None = None) -> Path:
    return write_family(folder, CASES[name], dtype=torch.float32, edit=edit)


def renamed(change: Callable[[str], str]) -> Callable[[State], None]:
    def edit(tensors: State) -> None:
        for name in list(tensors):
            tensors[change(name)] = tensors.pop(name)

    return edit


def logits(folder: Path) -> Tensor:
    tokens = torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        found: Tensor = load_checkpoint(folder, "cpu", torch.float32)(tokens)
    return found


def inside(name: str) -> str:
    """As ``torch.compile`` of every block names what is in it."""
    head, dot, rest = name.partition(".layers.0.")
    return f"{head}{dot}_orig_mod.{rest}" if dot else name


CHANGES: dict[str, Callable[[str], str]] = {
    "module": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "compiled blocks": inside,
    "base": lambda name: name.removeprefix("model."),
    "base in a wrapper": lambda name: f"module.{name.removeprefix('model.')}",
}


@pytest.mark.parametrize(
    ("name", "change"),
    [*(("llada", change) for change in CHANGES), *((name, "base in a wrapper") for name in CASES)],
)
def test_wrappers_and_base_models_are_recognised(name: str, change: str, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", name)
    other = written(tmp_path / "other", name, renamed(CHANGES[change]))
    assert torch.equal(logits(other), logits(plain))
    opened, program = open_model(other)
    assert opened.scan() == open_model(plain)[0].scan()
    assert not opened.left_out
    assert {row.status for row in coverage(program.graph, opened)} == {"quantized", "kept"}


def frequencies(name: str, base: float) -> Tensor:
    config = CASES[name].config
    width = config.get("hidden_size") or config["d_model"]
    heads = config.get("num_attention_heads") or config["n_heads"]
    half = config.get("head_dim", width // heads) // 2
    found: Tensor = base ** -(torch.arange(half) / half)
    return found.bfloat16()


@pytest.mark.parametrize("name", ["llada", "sdar", "llada-moe"])
def test_buffers_of_older_versions_are_left_out_and_listed(name: str, tmp_path: Path) -> None:
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    base = CASES[name].config["rope_theta"]
    plain = written(tmp_path / "plain", name)
    other = written(
        tmp_path / "other", name, lambda tensors: tensors.update({key: frequencies(name, base)})
    )
    assert torch.equal(logits(other), logits(plain))
    opened, program = open_model(other)
    assert opened.scan() == open_model(plain)[0].scan()
    (row,) = (r for r in coverage(program.graph, opened) if r.status == "left out")
    assert (row.tensor, row.reason) == (key, "a buffer that the model computes itself")


@pytest.mark.parametrize("name", ["llada", "sdar"])
def test_frequencies_of_another_base_are_refused(name: str, tmp_path: Path) -> None:
    key = "model.rotary_emb.inv_freq"
    folder = written(
        tmp_path, name, lambda tensors: tensors.update({key: frequencies(name, 1234.0)})
    )
    with pytest.raises(InvalidCheckpoint, match="other frequencies") as caught:
        open_model(folder)
    assert caught.value.where == (key,)
    assert "rope_theta" in caught.value.help


def test_an_equal_tied_head_is_left_out(tmp_path: Path) -> None:
    def twin(tensors: State) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()

    def alone(tensors: State) -> None:
        tensors[HEAD] = tensors.pop(EMBEDDING)

    plain = written(tmp_path / "plain", TIED)
    for number, edit in enumerate((twin, alone)):
        other = written(tmp_path / str(number), TIED, edit)
        assert torch.equal(logits(other), logits(plain))
        assert open_model(other)[0].scan() == open_model(plain)[0].scan()
    assert set(open_model(tmp_path / "0")[0].left_out) == {HEAD}


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    def twin(tensors: State) -> None:
        tensors[HEAD] = tensors[EMBEDDING] + 1

    folder = written(tmp_path, TIED, twin)
    for read in (lambda: open_model(folder)[0].scan(), lambda: logits(folder)):
        with pytest.raises(InvalidCheckpoint, match="are not equal") as caught:
            read()
        assert caught.value.where == (f"{HEAD}, {EMBEDDING}",)


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    def both(tensors: State) -> None:
        tensors[f"module.{HEAD}"] = tensors[HEAD] + 1

    with pytest.raises(InvalidCheckpoint, match="have one place") as caught:
        open_model(written(tmp_path, "dream", both))
    assert set(caught.value.where) == {HEAD, f"module.{HEAD}"}


def test_what_is_not_recognised_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, "dream", lambda tensors: tensors.update(other=torch.zeros(3)))
    with pytest.raises(InvalidCheckpoint, match="unmapped") as caught:
        open_model(folder)
    assert caught.value.where == ("other",)
    assert Checkpoint(folder).headers
