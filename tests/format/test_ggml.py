"""The codec of ggml's blocks: what is stored, refused, and moved by gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdc.errors import InvalidArtifact
from qdc.format.ggml import Ggml
from qdc.numerics.ggmltypes import TYPES, TypeName
from qdc.numerics.subblockgrid import SubblockGrid


def lowered(
    name: TypeName, rows: int, blocks: int, seed: int = 0
) -> tuple[Ggml, torch.Tensor, dict[str, torch.Tensor]]:
    kind = TYPES[name]
    weight = torch.randn(rows, blocks * kind.width, generator=torch.Generator().manual_seed(seed))
    codec = Ggml(rows=rows, columns=weight.shape[1], type=name)
    parts = []
    for part in torch.split(weight, kind.width, 1):
        grid = SubblockGrid.fit(part, kind, torch.ones(kind.width))
        parts.append(grid.encode(grid.written(grid.codes(part))))
    return codec, weight, codec.working(type(parts[0]).joined(parts))


@given(st.sampled_from(sorted(TYPES)), st.integers(1, 4), st.integers(1, 2), st.integers(0, 9))
def test_bytes_are_predicted_and_exact(name: TypeName, rows: int, blocks: int, seed: int) -> None:
    codec, weight, working = lowered(name, rows, blocks, seed)
    stored = codec.pack_exactly(working, "layer")
    assert codec.nbytes == rows * blocks * TYPES[name].nbytes == stored["blocks"].nbytes
    dense = codec.dense(codec.unpack(stored))
    assert dense.shape == weight.shape
    assert float((dense - weight).norm() / weight.norm()) < 0.7


def test_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="no whole blocks of 256"):
        Ggml(rows=4, columns=320, type="Q2_K")
    assert Ggml.fitting("Q2_K", 320) == "Q8_0"
    assert Ggml.fitting("Q2_0", 320) == "Q2_0"
    assert Ggml.fitting("Q2_K", 40) is None


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_scale_that_is_no_number_is_refused(name: TypeName) -> None:
    codec, _, working = lowered(name, 2, 2)
    fields = codec.fields(working["blocks"])
    fields.d[1, 1] = torch.nan
    with pytest.raises(InvalidArtifact, match="NaN or infinite"):
        codec.check(codec.working(fields), "layer")


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_relaxation_starts_at_what_is_stored(name: TypeName) -> None:
    codec, weight, working = lowered(name, 3, 2)
    relaxed = codec.relax(working, weight)
    assert torch.equal(relaxed.working()["blocks"], working["blocks"])
    assert torch.equal(relaxed.dense(), codec.dense(working))


def test_gradients_bring_a_relaxation_nearer() -> None:
    codec, weight, working = lowered("Q2_K", 8, 1)
    relaxed = codec.relax(working, weight)
    inputs = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    parameters = [{"params": [p], "lr": 3e-3 * size} for _, p, size in relaxed.trainable()]
    optimizer = torch.optim.Adam(parameters)

    def loss(dense: torch.Tensor) -> torch.Tensor:
        return (inputs @ (dense - weight).T).square().mean()

    start = float(loss(codec.dense(working)))
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(loss(relaxed.dense()))
        optimizer.step()
    assert float(loss(codec.dense(relaxed.working()))) < 0.8 * start
