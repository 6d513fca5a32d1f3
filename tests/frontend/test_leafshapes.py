"""What leaves are said to give is what they give, and what does not fit is left to them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.frontend.leafshapes import given_by, given_by_element
from qdc.models.layers import Attention, RMSNorm, Rotary


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


HEADS, KEYS, PLACES = meta(2, 5, 4, 6), meta(2, 5, 2, 6), meta(2, 5, dtype=torch.int64)
FITTING = {
    "embedding": (nn.Embedding(7, 12), (PLACES,)),
    "linear": (nn.Linear(12, 9), (meta(2, 5, 12),)),
    "linear of one axis": (nn.Linear(12, 9, bias=False), (meta(12),)),
    "norm": (RMSNorm(12, 1e-6).bfloat16(), (meta(2, 5, 12),)),
    "rotary": (Rotary(6, 1e4), (HEADS,)),
    "part of a rotary": (Rotary(6, 1e4, 4), (HEADS.bfloat16(),)),
    "attention": (Attention(), (HEADS, KEYS, KEYS, None)),
    "attention by blocks": (Attention(2), (HEADS, KEYS, KEYS, meta(2, 5, dtype=torch.bool))),
}
UNFIT = {
    "rows of an embedding that are no numbers of rows": (nn.Embedding(7, 12), (meta(2, 5),)),
    "another width": (nn.Linear(12, 9), (meta(2, 5, 11),)),
    "another dtype": (nn.Linear(12, 9).bfloat16(), (meta(2, 5, 12),)),
    "no batch": (Rotary(6, 1e4), (meta(5, 4, 6),)),
    "keys of another dtype": (Attention(), (HEADS, KEYS.bfloat16(), KEYS.bfloat16(), None)),
    "heads that share no keys": (Attention(), (HEADS, meta(2, 5, 3, 6), meta(2, 5, 3, 6), None)),
}


@pytest.mark.parametrize("case", FITTING)
def test_says_what_a_leaf_gives(case: str) -> None:
    leaf, read = FITTING[case]
    leaf = leaf.to("meta")
    found, expected = given_by(leaf, read), leaf(*read)
    assert found is not None
    assert (found.shape, found.dtype, found.device) == (
        expected.shape, expected.dtype, expected.device,
    )  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_leaves_what_does_not_fit_to_the_leaf(case: str) -> None:
    leaf, read = UNFIT[case]
    assert given_by(leaf.to("meta"), read) is None


def test_leaves_all_else_to_torch() -> None:
    assert given_by(nn.ReLU(), (meta(2),)) is None
    assert given_by(nn.Linear(2, 2, device="meta"), ()) is None
    assert given_by_element(F.silu, (meta(2), True)) is None
    assert given_by_element(torch.add, (meta(2), meta(2))) is None
