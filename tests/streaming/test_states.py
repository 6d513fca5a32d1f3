"""The store of calibration states: the same values from memory and from disk, within a budget."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import QdcError
from qdc.streaming.memory import machine_memory, states_memory
from qdc.streaming.states import StateStore
from qdc.streaming.stream import Stream
from qdc.units import parse_size
from tests.support.streams import Model, small_model

DTYPES = [torch.float32, torch.bfloat16]


def batch(size: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(100, (size, 3), generator=generator)
    return {"x": torch.randn(size, 3, 5, generator=generator), "tokens": tokens}


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory", [None, 0])
def test_values_come_back_as_they_wait(
    memory: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    given_, store = batch(2), StateStore(dtype, memory, tmp_path)
    held = store.hold(given_)
    assert list(held) == ["x", "tokens"]
    assert torch.equal(held["x"], given_["x"].to(dtype))
    assert held["x"].dtype == dtype
    assert torch.equal(held["tokens"], given_["tokens"])
    assert held.nbytes == sum(value.nbytes for value in held.values())
    assert (held.path is None) == (memory is None)
    with pytest.raises(KeyError):
        held["y"]


def test_views_and_shared_memory_are_spilled_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    values = {"a": whole, "b": whole.T, "c": whole[1:3, ::2], "d": whole}
    held = StateStore(memory=0, folder=tmp_path).hold(values)
    for name, value in values.items():
        assert torch.equal(held[name], value)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    budget=st.integers(0, 2000),
    dropped=st.sets(st.integers(0, 11)),
)
def test_the_budget_holds_and_files_go_with_their_values(
    sizes: list[int], budget: int, dropped: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("states")
    store = StateStore(torch.bfloat16, budget, folder)
    held = {}
    for number, size in enumerate(sizes):
        held[number] = store.hold(batch(size, number))
        assert store.in_memory <= budget
    assert store.in_memory + store.on_disk == sum(each.nbytes for each in held.values())
    for number in dropped & set(held):
        del held[number]
    assert store.in_memory + store.on_disk == sum(each.nbytes for each in held.values())
    assert files(folder) == sorted(e.path for e in held.values() if e.path is not None)
    for number in held:
        assert torch.equal(held[number]["x"], batch(sizes[number], number)["x"].bfloat16())
    held.clear()
    assert (store.in_memory, store.on_disk, files(folder)) == (0, 0, [])


def test_a_batch_that_two_lists_hold_stays_until_both_have_dropped_it(tmp_path: Path) -> None:
    store = StateStore(memory=0, folder=tmp_path)
    kept = [store.hold(batch(1))]
    entrance = list(kept)
    kept[0] = store.hold(batch(1, seed=1))
    assert len(files(tmp_path)) == 2
    assert torch.equal(entrance[0]["x"], batch(1)["x"])
    entrance.clear()
    assert len(files(tmp_path)) == 1


def walk(stream: Stream, model: Model) -> list[Tensor]:
    found = []
    for region in model.regions:
        stream.start(region)
        for stage in region.stages:
            stream.enter(stage)
            found += list(stream.values(stage))
        stream.rewind()
        stream.leave(region)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_gives_the_same_bits_whatever_is_spilled(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = small_model(tmp_path / "model")
    results = []
    for number, memory in enumerate((None, 700, 0)):
        folder = tmp_path / f"states{number}"
        store = StateStore(dtype, memory, folder)
        device = torch.device("cpu")
        stream = Stream(
            model.program, model.batches, model.weights, device, returns=True, states=store
        )
        results.append(walk(stream, model))
        assert (memory is None) == (not files(folder))
        assert memory is None or store.in_memory <= memory
        assert len(files(folder)) <= 2 * len(model.batches), "replaced batches are gone"
        del stream
        gc.collect()
        assert files(folder) == []
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_streams_of_one_store_share_its_budget(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    store = StateStore(memory=2400, folder=tmp_path / "states")
    streams = [
        Stream(model.program, model.batches, model.weights, torch.device("cpu"), states=store)
        for _ in range(3)
    ]
    for stream in streams:
        stream.enter(model.regions[0].stages[0])
        assert store.in_memory <= 2400
    assert store.on_disk > 0
    assert store.in_memory + store.on_disk == sum(stream.kept_bytes() for stream in streams)


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = StateStore(memory=0, folder=tmp_path / "file" / "states")
    with pytest.raises(QdcError, match="cannot write to") as caught:
        store.hold(batch(1))
    assert "--host-memory" in caught.value.help


def test_states_that_somebody_took_away_are_no_traceback(tmp_path: Path) -> None:
    held = StateStore(memory=0, folder=tmp_path).hold(batch(1))
    (path,) = files(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(QdcError, match="cannot be read back"):
        held["x"]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("1000000", 1_000_000),
        ("8G", 8 << 30),
        ("8 GiB", 8 << 30),
        ("1.5g", 3 << 29),
        ("512MB", 512 << 20),
        ("3k", 3072),
        ("2T", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_size(text, "--host-memory") == nbytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "8X", "1e9", "eight", "8GG", "nan", "1" * 30])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(QdcError, match="--host-memory is no size") as caught:
        parse_size(text, "--host-memory")
    assert "8G" in caught.value.help


def test_a_container_limits_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "none").write_text("max\n")
    (tmp_path / "some").write_text("123456789\n")
    paths = tuple(str(tmp_path / name) for name in ("none", "gone"))
    assert machine_memory(paths) == physical
    assert machine_memory((*paths, str(tmp_path / "some"))) == 123_456_789
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = states_memory()
    assert 0 < alone <= physical // 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert states_memory() == alone // 4, "processes of one machine share its memory"
