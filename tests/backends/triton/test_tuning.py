"""Which kernel runs: defaults by size, measured choices kept for a device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import tuning
from qdc.backends.triton.variants import Choice, default_choice


def test_defaults_follow_the_number_of_rows() -> None:
    families = [default_choice(m, 4096, 32).variant.family for m in (1, 16, 64, 255, 256, 4096)]
    assert families == ["planes", "planes", "tile", "tile", "expand", "expand"]


def test_small_layers_are_split_and_large_ones_are_not() -> None:
    assert default_choice(4, 4096, 32).split > 1
    assert default_choice(4, 126464, 32).split == 1
    assert default_choice(4, 256, 2).split == 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card 1/2")
    monkeypatch.setenv("QDC_CACHE", str(tmp_path))
    tuning._entries.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    tuning._entries.cache_clear()


SHAPE: dict[str, Any] = {
    "tokens": 20,
    "padded_rows": 4096,
    "columns": 4096,
    "planes": 64,
    "units": 32,
    "dtype": torch.bfloat16,
}


def tune() -> tuple[tuning.MeasuredChoice, list[Choice]]:
    tried: list[Choice] = []

    def run(choice: Choice) -> None:
        tried.append(choice)

    def time(call):  # type: ignore[no-untyped-def]
        call()
        return 5.0 if tried[-1].variant.family == "tile" and tried[-1].split == 1 else 9.0

    return tuning.tune(run, time, **SHAPE), tried


def test_the_fastest_is_kept_and_used(device: Path) -> None:
    before = tuning.choose(**SHAPE)
    entry, tried = tune()
    assert entry.variant.family == "tile"
    assert len(tried) == len(set(tried)) > 3
    assert tuning.choose(**SHAPE) == Choice(entry.variant, 1) != before
    assert tuning.choose(**{**SHAPE, "tokens": 32}) == Choice(entry.variant, 1)
    assert tuning.choose(**{**SHAPE, "tokens": 33}) == default_choice(33, 4096, 32)
    (path,) = device.iterdir()
    assert "Card-1-2" in path.name


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"device": "other", "triton": "0"}'])
def test_a_damaged_file_means_the_defaults(device: Path, text: str) -> None:
    tune()
    (path,) = device.iterdir()
    path.write_text(text)
    tuning._entries.cache_clear()
    assert tuning.choose(**SHAPE) == default_choice(20, 4096, 32)


def test_a_variant_that_was_never_tried_is_not_run(device: Path) -> None:
    tune()
    (path,) = device.iterdir()
    path.write_text(path.read_text().replace('"rows": 64', '"rows": 0'))
    tuning._entries.cache_clear()
    assert tuning._entries()
    assert tuning.choose(**SHAPE) == default_choice(20, 4096, 32)


def test_it_can_be_switched_off(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDC_CACHE", "off")
    tune()
    assert list(device.iterdir()) == []
