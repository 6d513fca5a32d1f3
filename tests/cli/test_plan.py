"""``qdc plan``: what it prints, and what it refuses."""

import json
from pathlib import Path

import pytest

from qdc.cli.plan import after
from qdc.planning.outlook import Outlook, ShardSize
from tests.cli.conftest import Command
from tests.support import llada8b


def test_llada_8b_in_gb_and_gib(
    tmp_path: Path, qdc: Command, caplog: pytest.LogCaptureFixture
) -> None:
    """From two files."""
    llada8b.write(tmp_path)
    text = qdc("plan", tmp_path, "--samples", "8", "--length", "256", "--device", "cpu")
    assert caplog.messages == []
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "6,979,321,856 weights in 224 layers" in lines["quantized"]
    assert "4,608" in lines["blocks"]
    assert "32 regions of 4 stages" in lines["regions"]
    assert "16.03 GB (14.93 GiB)" in lines["before"]
    assert "GB (" in lines["after"]
    assert "GiB)" in lines["after"]
    assert "291 tensors: 226 quantized, 65 kept, none unmapped" in lines["coverage"]
    assert "an estimate" in lines["time"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors.index.json",
    ]  # fmt: skip


def test_json_has_every_figure(model: Path, qdc: Command) -> None:
    data = json.loads(
        qdc("plan", model, "--passes", "rtn", "--samples", 4, "--length", 16, "--json")
    )
    assert data["file_bytes"] == sum(shard["file_bytes"] for shard in data["shards"])
    assert data["seconds"] > 0
    assert {cost["name"] for cost in data["passes"]} == {"calibrate-mcs", "rtn-lower", "pack"}
    assert data["host"]["nbytes"] >= data["process_bytes"] > 0
    assert (data["samples"], data["length"]) == (4, 16)


def test_states_above_host_memory_wait_on_disk(model: Path, qdc: Command) -> None:
    few = ("plan", model, "--samples", 4, "--length", 16, "--device", "cpu", "--json")
    whole, spilled = (json.loads(qdc(*few, "--host-memory", size)) for size in ("1G", "0"))
    assert whole["host"]["parts"]["calibration states"] > 0
    assert "calibration states" not in spilled["host"]["parts"]
    assert spilled["scratch_bytes"] > whole["scratch_bytes"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--passes", "rtn-lower,pakc"), "did you mean pack?"),
        (("--passes", "sensitivity,pack"), "unmet need"),
        (("--passes", "data-free", "--samples", "3"), "no pass of the pipeline takes --samples"),
        (("--passes", "data-free", "--calibration", "a.txt"), "no pass of the pipeline reads"),
        (("--states", "f16"), "states cannot be held in 'f16'"),
        (("--host-memory", "lots"), "--host-memory is no size: 'lots'"),
        (("--device", "tpu"), "known: cpu, cuda, auto"),
    ],
    ids=str,
)
def test_what_a_compile_would_refuse_is_refused(
    options: tuple[str, ...], what: str, model: Path, refused: Command
) -> None:
    assert what in refused("plan", model, *options)


@pytest.mark.parametrize(
    ("fewer", "said"),
    [
        (0, "tensors 2 kB (1.953 KiB); up to 3 kB (2.93 KiB) more, as the allocation falls"),
        (9, "2 kB (1.953 KiB); 9 B less to 3 kB (2.93 KiB) more, as the allocation falls"),
    ],
)
def test_a_range_of_sizes_is_said_in_words(fewer: int, said: str) -> None:
    found = Outlook.model_construct(
        shards=(ShardSize(name="model.safetensors", tensor_bytes=2000, file_bytes=2100),),
        beside=(), uncounted=(), fewer=fewer, more=3000,
    )  # fmt: skip
    assert said in after(found)
