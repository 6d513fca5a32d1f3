"""The plan of a mixture of experts: sizes to the byte, what is held, as if the router were even."""

from pathlib import Path

import pytest
import torch

from tests.support.compiles import compile_tiny
from tests.support.experts import write_mixture
from tests.support.outlooks import forecast_tiny, stream_forecast
from tests.support.streams import model_of


@pytest.mark.parametrize("passes", ["default", "rtn"])
def test_every_file_is_as_large_as_predicted(passes: str, tmp_path: Path) -> None:
    model = write_mixture(tmp_path / "model", experts=3, num_hidden_layers=1)
    outlook = forecast_tiny(model, passes)
    report = compile_tiny(model, tmp_path / "out", passes)
    files = {f.name: f.nbytes for f in report.files if f.name.endswith(".safetensors")}
    assert {shard.name: shard.file_bytes for shard in outlook.shards} == files
    assert outlook.tensor_bytes == report.tensor_bytes
    assert [row.status for row in outlook.coverage] == [row.status for row in report.coverage]


def test_experts_that_will_see_few_tokens_are_announced(tmp_path: Path) -> None:
    model = write_mixture(tmp_path / "model", experts=8, count=1, num_hidden_layers=1)
    (few,) = (text for text in forecast_tiny(model, "rtn").warnings if "expert" in text)
    assert few.startswith("an expert gets about 8 tokens, fewer than the inputs of 24 ")
    plenty = write_mixture(tmp_path / "plenty", experts=1, count=1, num_hidden_layers=1)
    assert not any("expert" in text for text in forecast_tiny(plenty, "rtn").warnings)


def test_what_is_held_before_an_expert_is_foreseen(tmp_path: Path) -> None:
    model = model_of(write_mixture(tmp_path / "model", experts=4, count=2))
    stream = model.stream(held=torch.bfloat16)
    forecast = stream_forecast(model, samples=3, batch=2, held=2, returns=False)
    routed = total = 0.0
    for stage in model.stages():
        stream.enter(stage)
        forecast.enter(stage)
        if "down_proj" in stage.layers[0]:
            routed += sum(map(len, stream.values(stage)))
            total += forecast.tokens_of(stage)
            assert forecast.tokens_of(stage) == forecast.tokens.numel() / 2
        else:
            assert forecast.kept_bytes() == stream.kept_bytes()
    assert routed == total, "on average over the experts the share is exact"
