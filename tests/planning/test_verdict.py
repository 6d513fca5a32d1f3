"""Whether a compile fits a machine, what else would, and machines that are elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdc.errors import QdcError, UnknownName
from qdc.pipeline.registry import standard_registry
from qdc.planning.cards import CARDS, find_card
from qdc.planning.forecast import forecast
from qdc.planning.headers import Headers, open_headers
from qdc.planning.machine import Machine
from qdc.planning.options import ForecastOptions, PlanOptions
from qdc.planning.outlook import Outlook, Verdict
from qdc.planning.rates import Rates
from qdc.planning.verdict import judged
from tests.support import llada8b
from tests.support.outlooks import MACHINE

REGISTRY = standard_registry()
GIGA = 10**9


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two regions as wide as LLaDA-8B's, without weights."""
    folder = tmp_path_factory.mktemp("shallow")
    config = {**llada8b.CONFIG, "n_layers": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [n for n in llada8b.shapes() if n.split(".")[3] in "01weight"]
    index = {"weight_map": dict.fromkeys(names, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def found(folder: Path, machine: Machine, **options: Any) -> tuple[Outlook, Verdict]:
    asked = PlanOptions.parse(model_dir=folder, **options)
    outlook = judged(asked, REGISTRY, machine, forecast(asked, REGISTRY, machine, text=False))
    assert outlook.verdict is not None
    return outlook, outlook.verdict


def test_what_fits_has_no_other_choice(shallow: Path) -> None:
    fast = replace(MACHINE, rates=Rates(1e15, 1e15, 1e15), memory=64 * GIGA)
    outlook, verdict = found(shallow, fast)
    assert verdict.fits
    assert (verdict.lacking, verdict.choices) == ((), ())
    assert outlook.seconds < 3600


def test_too_little_memory_is_met_by_less_in_it(shallow: Path) -> None:
    small = replace(MACHINE, rates=Rates(1e15, 1e15, 1e15), memory=16 * GIGA)
    outlook, verdict = found(shallow, small, host_memory="40G")
    assert (verdict.fits, verdict.lacking) == (False, ("memory",))
    [limit, low, *_] = verdict.choices
    assert limit.options.startswith("--host-memory ")
    assert low.options == "--effort low"
    assert all(choice.fits and choice.host_bytes < 16 * GIGA for choice in verdict.choices)
    # What is offered can be asked for, and comes out as it was said.
    again, _ = found(shallow, small, host_memory=limit.options.split()[1])
    assert again.host.nbytes == pytest.approx(limit.host_bytes, rel=0.01)
    assert again.disk_bytes == limit.disk_bytes > outlook.disk_bytes


def test_what_is_given_stays_in_other_choices(shallow: Path) -> None:
    slow = replace(MACHINE, rates=Rates(1e10, 1e10, 1e10), memory=64 * GIGA)
    outlook, verdict = found(shallow, slow, samples=64)
    assert verdict.fits
    assert outlook.seconds > 24 * 3600
    assert verdict.choices[0].options == "--samples 16 --length 512"
    assert all(choice.seconds < outlook.seconds / 2 for choice in verdict.choices)


def test_a_model_is_traced_once_for_all_choices(
    shallow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(folder: Path, *rest: Any) -> Any:
        opened.append(folder)
        return open_headers(folder, *rest)

    monkeypatch.setattr("qdc.planning.headers.open_headers", counted)
    slow = replace(MACHINE, rates=Rates(1e10, 1e10, 1e10), memory=64 * GIGA)
    asked = PlanOptions.parse(model_dir=shallow, samples=64)
    headers = Headers(shallow, REGISTRY.families)
    one = forecast(asked, REGISTRY, slow, text=False, headers=headers)
    verdict = judged(asked, REGISTRY, slow, one, headers).verdict
    assert opened == [shallow]
    assert verdict is not None
    assert len(verdict.choices) > 1
    # No forecast leaves annotations to the next one.
    again = forecast(asked, REGISTRY, slow, text=False, headers=headers)
    for of in ("kinds", "passes", "coverage", "blocks", "shards", "forwards"):
        assert getattr(again, of) == getattr(one, of)


def test_a_disk_that_is_too_small_is_said(shallow: Path) -> None:
    _, verdict = found(shallow, replace(MACHINE, disk=1000), passes="data-free")
    assert (verdict.lacking, verdict.choices) == (("disk",), ())


def test_a_card_elsewhere_is_sized_by_its_data_sheet(shallow: Path) -> None:
    outlook, verdict = found(shallow, Machine.elsewhere("RTX 4090"))
    assert outlook.device_memory is not None
    assert 0 < outlook.device_memory.nbytes < (verdict.device_memory or 0) == 24 * GIGA
    assert not outlook.measured
    assert (verdict.fits, verdict.memory, verdict.free_disk) == (True, None, None)
    work = outlook.passes[1]
    card = CARDS["4090"]
    assert work.seconds == pytest.approx(
        work.products / (card.fp32 * 1e12) + work.elements / (card.bandwidth * 1e9 / 4), rel=0.01
    )
    _, small = found(shallow, replace(Machine.elsewhere("t4"), device_memory=4 * GIGA))
    assert small.lacking == ("device memory",)
    assert all(choice.device_bytes < 4 * GIGA for choice in small.choices if choice.device_bytes)


def test_names_of_cards_are_read_as_people_write_them() -> None:
    assert find_card("NVIDIA GeForce RTX 4090") == find_card("4090") == CARDS["4090"]
    assert find_card("H100_PCIe") == CARDS["h100-pcie"]
    with pytest.raises(UnknownName, match="no card is called 'h10'") as caught:
        find_card("h10")
    assert "did you mean h100" in str(caught.value)
    with pytest.raises(UnknownName) as caught:
        find_card("nothing")
    assert caught.value.help.count("known: ") == 1
    assert "v100" in caught.value.help


def test_one_machine_at_a_time() -> None:
    with pytest.raises(QdcError, match="--gpu h100 of another"):
        ForecastOptions.parse(model_dir="m", gpu="h100", device="cpu")
