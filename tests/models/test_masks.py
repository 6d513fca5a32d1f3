"""Masks of every form that callers bring: taken for what they say, or refused."""

import pytest
import torch
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.models.families import FAMILIES
from tests.support.families import CASES

LENGTH = 9


def network(name: str) -> nn.Module:
    """A tiny decoder with random weights."""
    case = CASES[name]
    [family] = (each for each in FAMILIES if each.name == case.family)
    module, _ = family.build(dict(case.config))
    module.to_empty(device="cpu")
    drawn = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=drawn)
    return module


def tokens() -> Tensor:
    return torch.randint(2, 2048, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def padding() -> Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 6:] = 0
    return mask


@pytest.mark.parametrize("hides", [-torch.inf, torch.finfo(torch.float32).min, -65504.0])
def test_masks_of_four_axes_hide_what_they_hide(hides: float) -> None:
    model, ids = network("dream"), tokens()
    expected = model(ids, padding())
    seen = padding().bool()[:, None, None, :].expand(2, 1, LENGTH, LENGTH)
    assert torch.equal(model(ids, seen), expected)
    added = torch.zeros(seen.shape).masked_fill(~seen, hides)
    assert torch.equal(model(ids, added), expected)
    assert torch.equal(model(ids, added[:, :, :1]), expected)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    assert torch.allclose(model(ids, causal)[:, :4], model(ids[:, :4], causal[..., :4, :4]))


def test_rows_of_padding_that_see_nothing_disturb_no_other() -> None:
    model, ids, mask = network("llada"), tokens(), padding().bool()
    seen = (mask[:, None, :] & mask[:, :, None])[:, None]
    found, expected = model(ids, seen), model(ids, padding())
    assert torch.allclose(found[1, :6], expected[1, :6], atol=1e-5)


def test_a_mask_of_four_axes_stands_in_place_of_the_blocks() -> None:
    model, ids = network("sdar"), tokens()
    block = CASES["sdar"].block
    assert block is not None
    number = torch.arange(LENGTH) // block
    own = (number[:, None] >= number[None, :])[None, None]
    assert torch.equal(model(ids, own), model(ids))
    assert not torch.equal(model(ids, torch.ones_like(own)), model(ids))


def test_full_is_no_padding_where_all_see_all() -> None:
    model, ids = network("dream"), tokens()
    assert torch.equal(model(ids, "full"), model(ids))
    with pytest.raises(QdcError, match="this model sees blocks of"):
        network("sdar")(ids, "full")
    with pytest.raises(QdcError, match="'causal', which is no mask"):
        model(ids, "causal")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, LENGTH).masked_fill(~padding().bool(), -torch.inf), "holds -inf, need 1"),
        (torch.zeros(2, LENGTH), "a row of zeros"),
        (padding() * 2, "holds 2, need 1"),
        (padding()[:, :-1], r"is \[2, 8\], and the tokens are \[2, 9\]"),
        (torch.ones(3, LENGTH), r"is \[3, 9\]"),
        (torch.ones(2, LENGTH, LENGTH, dtype=torch.bool), r"is \[2, 9, 9\]"),
        (torch.ones(2, 1, LENGTH, LENGTH), "adds 1.0, and only 0"),
        (torch.zeros(2, 1, LENGTH, LENGTH) - torch.arange(LENGTH), "adds -1.0, and only 0"),
        (torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.int64), "of four axes holds int64"),
        ([[1] * LENGTH] * 2, "is of the type list"),
    ],
)
def test_what_would_be_misread_is_refused(mask: object, message: str) -> None:
    with pytest.raises(QdcError, match=message):
        network("dream")(tokens(), mask)


def test_truth_values_of_any_kind_are_padding() -> None:
    model, ids = network("llada"), tokens()
    expected = model(ids, padding())
    for kind in (torch.bool, torch.int32, torch.float32, torch.bfloat16):
        assert torch.equal(model(ids, padding().to(kind)), expected)
