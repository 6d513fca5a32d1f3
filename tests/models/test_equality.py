"""Every family computes what a class of transformers computes from the same published tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qdc.models.families import BUILT_IN, FAMILIES
from qdc.runtime.load import load_checkpoint
from tests.support.families import CASES, TABLES, TOLERANCE, Case, write_family

LENGTH = 19


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), case, dtype=torch.float32)


@pytest.fixture(scope="module")
def ours(folder: Path) -> nn.Module:
    return load_checkpoint(folder, "cpu", torch.float32)


@pytest.fixture(scope="module")
def native(case: Case, folder: Path) -> nn.Module:
    return case.native_model(load_file(folder / "model.safetensors"))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 2048, (4, LENGTH), generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == {family.name for family in TABLES}


@torch.no_grad()
def test_equals_the_native_class(
    case: Case, ours: nn.Module, native: nn.Module, tokens: Tensor
) -> None:
    mask = torch.ones_like(tokens)
    mask[1, 13:], mask[2, :9], mask[3, 5:9] = 0, 0, 0
    real = mask.bool()
    expected = case.native_logits(native, tokens)
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(ours(tokens), expected, atol=TOLERANCE, rtol=0)
    padded, due = ours(tokens, mask), case.native_logits(native, tokens, mask)
    assert bool(padded.isfinite().all())
    torch.testing.assert_close(padded[real], due[real], atol=TOLERANCE, rtol=0)
    assert float((due[1:] - expected[1:]).abs().max()) > 0.01


@torch.no_grad()
def test_a_position_sees_its_block_and_what_is_before(
    case: Case, ours: nn.Module, tokens: Tensor
) -> None:
    other = tokens.clone()
    other[:, 10] = (other[:, 10] + 1) % 2048
    changed = (ours(other) - ours(tokens)).abs().amax(-1).amin(0) > 1e-5
    first = 0 if case.block is None else 10 // case.block * case.block
    assert changed.tolist() == [place >= first for place in range(LENGTH)]


def test_the_published_names_and_no_others(case: Case, ours: nn.Module) -> None:
    shapes = case.shapes(case.config)
    published = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    wanted = case.split(case.config, published)
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }
    assert not list(ours.named_buffers())


def test_the_family_says_what_the_model_is(case: Case) -> None:
    family = next(f for f in FAMILIES if f.name == case.family)
    module, facts = BUILT_IN.build(case.config)
    assert facts.family == family.name
    assert facts.logits_shift == family.logits_shift == getattr(module, "logits_shift", 0)
    without = {key: value for key, value in case.config.items() if key != "mask_token_id"}
    large = {key: 1 << 18 if key == "vocab_size" else value for key, value in without.items()}
    if family.mask_token_id is not None:
        assert BUILT_IN.build(large)[1].mask_token_id == family.mask_token_id
