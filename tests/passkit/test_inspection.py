"""Inspection: the figures are those of the values that the stages read."""

import json
from pathlib import Path

import pytest
import torch

from qdc.checkpoint.folder import Checkpoint
from qdc.frontend.opening import open_model
from qdc.passkit.inspection import Sampling, _States, inspect
from qdc.passkit.samples import draw_samples
from qdc.runtime.load import load_checkpoint
from qdc.text.records import Fields
from qdc.text.source import read_source, read_text
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.experts import write_mixture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


def test_the_figures_are_those_of_a_whole_forward(model: Path) -> None:
    """The last down projection's input, caught by a hook on the whole model."""
    checkpoint, program = open_model(model)
    source, encode = read_text(None), encoder(load_tokenizer(model))
    sampling = Sampling(samples=3, length=12, ratios=(1.0,), top=2, batch=2)
    found = inspect(program, checkpoint, source, encode, sampling, CPU).shifts[-1]
    assert found.layers == ("blocks.1.ff_out",)

    clean = draw_samples(source, encode, program.graph.model, 3, 12, 0, 0).clean
    whole = load_checkpoint(model, "cpu", torch.float32)
    seen: list[torch.Tensor] = []
    whole.get_submodule("model.transformer.blocks.1.ff_out").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach().reshape(-1, 48))
    )
    for tokens in (clean, torch.full_like(clean, MASK)):
        whole(tokens)
    moments = [rows.T @ rows / len(rows) for rows in seen]
    assert found.every is not None
    distance = torch.linalg.matrix_norm(moments[1] - moments[0]) / torch.linalg.matrix_norm(
        moments[0]
    )
    assert found.every.distance == pytest.approx(distance.item(), rel=1e-3)
    trace = (moments[1].trace() / moments[0].trace()).log()
    assert found.every.trace == pytest.approx(trace.item(), abs=1e-4)


def test_padding_is_in_no_figure(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    texts = [f"x = {'1 + ' * (n % 3)}{n}" for n in range(4)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    checkpoint, program = open_model(model)
    source, encode = read_source(path, Fields()), encoder(load_tokenizer(model))
    short, long = (
        inspect(
            program,
            checkpoint,
            source,
            encode,
            Sampling(samples=4, length=length, ratios=(0.5,), top=2, batch=3, pack="pad"),
            CPU,
        )
        for length in (14, 20)
    )
    assert short.use.cut == 0
    assert long.use.padding == short.use.padding + 4 * 6
    for one, other in zip(short.shifts, long.shifts, strict=True):
        assert one.masked_tokens == other.masked_tokens
        assert one.every is not None
        assert other.every is not None
        assert one.every.trace == pytest.approx(other.every.trace, abs=1e-4)
        assert one.every.distance == pytest.approx(other.every.distance, abs=1e-3)


def test_only_one_region_is_read_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, program = open_model(model)
    read: list[str] = []
    usual = Checkpoint.tensor

    def counted(self: Checkpoint, name: str) -> torch.Tensor:
        read.append(name)
        return usual(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    encode = encoder(load_tokenizer(model))
    told: list[tuple[int, int]] = []
    inspect(
        program, checkpoint, read_text(None), encode, Sampling(samples=2, length=8), CPU,
        lambda done, total: told.append((done, total)),
    )  # fmt: skip
    blocks = [name.split(".")[3] for name in read if ".blocks." in name]
    assert blocks == sorted(blocks), "no region is read again after the next one"
    assert told == [(step, 8) for step in range(1, 9)]


def test_prompts_are_never_masked(model: Path, tmp_path: Path) -> None:
    checkpoint, program = open_model(model)
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(f'{{"q": "say the word {n}", "a": "{n}"}}' for n in range(30)))
    source, encode = read_source(path, Fields.parse(chat="q,a")), encoder(load_tokenizer(model))
    sampling = Sampling(samples=4, length=24, ratios=(1.0,), top=2)
    found = inspect(program, checkpoint, source, encode, sampling, CPU).shifts[1]
    answers = draw_samples(source, encode, program.graph.model, 4, 24, 0, 0).maskable
    assert found.masked_tokens == answers.sum()
    assert 0 < found.masked_tokens < 48
    assert found.visible is not None


def test_an_expert_that_sees_no_tokens_has_no_figures(tmp_path: Path) -> None:
    folder = write_mixture(tmp_path / "model", count=1, idle=True, num_hidden_layers=1)
    checkpoint, program = open_model(folder)
    sampling = Sampling(samples=3, length=12, ratios=(0.5,), top=2, batch=2)
    source, encode = read_text(None), encoder(load_tokenizer(folder))
    found = inspect(program, checkpoint, source, encode, sampling, CPU).shifts
    tokens = {row.layers[0]: row.masked_tokens for row in found if row.ratio}
    experts = [f"model.layers.0.mlp.experts.{number}.gate_proj" for number in range(4)]
    assert sum(tokens[name] for name in experts) == tokens["model.layers.0.self_attn.q_proj"]
    for row in found:
        idle = ".experts.3." in row.layers[0]
        assert (row.every is None) == idle
        assert not (idle and row.masked_tokens)


def test_the_sampler_masks_at_each_ratio(model: Path) -> None:
    """States of one trajectory: what is masked later was masked before, the prompt never."""
    checkpoint, program = open_model(model)
    encode = encoder(load_tokenizer(model))
    sampling = Sampling(
        samples=3, length=16, ratios=(0.25, 0.75), top=2, batch=2, geometry="tmas", steps=4
    )
    states = _States(program, checkpoint, read_text(None), encode, sampling, CPU)
    (clean, _), _, (_, few), (tokens, many) = states.parts
    assert few.sum(1).tolist() == [3] * 3
    assert many.sum(1).tolist() == [9] * 3
    assert not (few & ~many).any()
    assert not many[:, :4].any()
    assert torch.equal(tokens[:, :4], clean[:, :4])
