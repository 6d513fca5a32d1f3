"""Every family computes what the code computes that was published with its models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdc.models.families import BUILT_IN, FAMILIES
from qdc.runtime.load import load_checkpoint
from tests.support.published import FIXTURES, PUBLISHED, config_of, kept_rows, write_published

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
"""In fp32 logits of a standard deviation near 3; the order of additions differs."""


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_equals_the_published_code(name: str, tmp_path: Path) -> None:
    model = load_checkpoint(write_published(tmp_path, name), "cpu", torch.float32)
    data = load_file(FIXTURES / name / "forward.safetensors")
    cases = sorted({key.rpartition(".")[0] for key in data if key.endswith(".logits")})
    assert cases
    for case in cases:
        tokens, expected = data[f"{case}.ids"], data[f"{case}.logits"]
        mask = data.get(f"{case}.mask")
        seen = torch.ones_like(tokens) if mask is None else mask
        given = {"before": data[f"{case}.before"]} if f"{case}.before" in data else {}
        rows = kept_rows(name, tokens.shape[1], expected.shape[1])
        found, real = model(tokens, mask, **given)[:, rows], seen.bool()[:, rows]
        assert float(expected.std()) > 0.5
        torch.testing.assert_close(found[real], expected[real], atol=TOLERANCE, rtol=0)


def test_every_family_has_a_fixture_that_its_proof_names() -> None:
    proved: dict[str, str] = {}
    for family in FAMILIES:
        proof = next(each for each in family.proved if "test_published" in each.test)
        places = proof.what.partition(": ")[2].split(", ")
        proved |= {Path(place).name: family.name for place in places}
        assert all((ROOT / place / "forward.safetensors").is_file() for place in places)
    assert set(proved) == set(PUBLISHED)
    for name, family_name in proved.items():
        found = BUILT_IN.find(config_of(name))
        assert found is not None
        assert found.name == family_name
    assert set(proved.values()) == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fixtures_say_where_they_come_from(name: str) -> None:
    text = (FIXTURES / name / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert "modeling" in text or f"`{name.rpartition('-')[0]}`" in text
