"""A device whose memory holds fewer samples than a batch: halves are run instead."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qdc.errors import QdcError
from qdc.streaming.execute import Executor
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.streams import Model, small_model


def limit(monkeypatch: pytest.MonkeyPatch, samples: int) -> list[int]:
    """Let linears run out of memory on more samples than this; gives the sizes that were tried."""
    execute, tried = Executor.execute, list[int]()

    def limited(self: Executor, name: str, environment: Any, *rest: Any) -> Any:
        if self.graph[name].op == "linear":
            rows = len(environment[self.graph[name].inputs[0]])
            tried.append(rows)
            if rows > samples:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return execute(self, name, environment, *rest)

    monkeypatch.setattr(Executor, "execute", limited)
    return tried


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = small_model(tmp_path_factory.mktemp("small"))
    generator = torch.Generator().manual_seed(1)
    model.batches = [torch.randint(64, (size, 6), generator=generator) for size in (5, 5, 3)]
    return model


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_what_is_computed_does_not_change(
    samples: int, small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small.stream()
    stages = small.stages()
    wanted = []
    for stage in stages:
        plain.enter(stage)
        wanted.append(list(plain.values(stage)))
    limit(monkeypatch, samples)
    stream = small.stream()
    for stage, values in zip(stages, wanted, strict=True):
        stream.enter(stage)
        found = list(stream.values(stage))
        assert [len(value) for value in found] == [5, 5, 3]
        for one, other in zip(found, values, strict=True):
            torch.testing.assert_close(one, other)
    assert stream.linear_calls == plain.linear_calls


def test_a_size_that_did_not_fit_is_not_tried_again(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = limit(monkeypatch, 2)
    stream, said = small.stream(), list[tuple[str, int]]()
    stream.executor.shrunk = lambda name, samples: said.append((name, samples))
    stream.enter(small.stages()[1])
    assert tried.count(5) == 1
    assert [samples for _, samples in said] == [2]


def test_the_size_that_did_fit_goes_with_the_way(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that takes the way over, as in another process, does not try more again."""
    tried = limit(monkeypatch, 2)
    stream, heir = small.stream(), small.stream()
    assert stream.trail.most is None
    stream.enter(small.stages()[1])
    assert stream.trail.most == 2
    heir.take_over(stream.trail, stream.kept)
    tried.clear()
    heir.enter(small.stages()[2])
    assert max(tried) == 2


def test_one_sample_that_does_not_fit_says_what_to_lower(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0)
    with pytest.raises(QdcError, match="does not hold one sample") as caught:
        small.stream().enter(small.stages()[1])
    assert "--length" in caught.value.help


def test_a_compile_goes_on_with_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_checkpoint(tmp_path / "m", d_model=32, mlp_hidden_size=48)
    passes = "stages(calibrate-mcs,rtn-lower),pack"
    whole = compile_tiny(model, tmp_path / "whole", passes, states="f32")
    limit(monkeypatch, 2)
    halved = compile_tiny(model, tmp_path / "halved", passes, states="f32")
    assert any("ran out of memory batch=2" in remark for remark in halved.remarks)
    assert halved.layer_forwards == whole.layer_forwards
    for one, other in zip(halved.layers, whole.layers, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-4)
