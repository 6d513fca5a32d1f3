"""The shared-table codec: exact inverses, its bytes, the width of an index, hostile tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.sharedtable import SharedTable


def drawn(codec: SharedTable, seed: int) -> dict[str, Tensor]:
    """Working tensors at random."""
    generator = torch.Generator().manual_seed(seed)
    shape, groups = (codec.rows, codec.columns), (codec.rows, codec.groups)
    return {
        "codes": torch.randint(0, 1 << codec.planes, shape, generator=generator).to(torch.uint8),
        "index": torch.randint(0, codec.lines, groups, generator=generator).to(torch.int32),
        "table": torch.randn(codec.lines, codec.planes + codec.offset, generator=generator).half(),
    }


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    group=st.sampled_from([8, 16, 40]),
    planes=st.integers(1, 4),
    offset=st.booleans(),
    lines=st.sampled_from([1, 2, 255, 256, 257, 4000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_stored_and_working_form_are_the_same_weight(
    rows: int, columns: int, group: int, planes: int, offset: bool, lines: int, seed: int
) -> None:
    codec = SharedTable.model_validate(
        {
            "rows": rows,
            "columns": columns,
            "group": group,
            "planes": planes,
            "offset": offset,
            "lines": lines,
        }
    )
    working = drawn(codec, seed)
    stored = codec.pack_exactly(working, "q")
    again = codec.unpack(stored)
    assert again.keys() == working.keys()
    assert all(torch.equal(again[suffix], working[suffix]) for suffix in working)
    index = rows * -(-columns // group) * (1 if lines <= 256 else 2)
    table = 2 * lines * (planes + offset)
    assert codec.nbytes == rows * planes * -(-columns // 8) + index + table
    row, column = rows - 1, columns - 1
    line = working["table"][int(working["index"][row, column // group])].float()
    code = int(working["codes"][row, column])
    total = line[planes] if offset else torch.zeros(())
    for k in range(planes):
        total = total + line[k] * (code >> k & 1)
    assert float(codec.dense(working)[row, column]) == float(total)


@pytest.mark.parametrize(("lines", "bits"), [(256, 2.0635), (65536, 2.25)])
def test_bits_of_a_large_layer(lines: int, bits: float) -> None:
    """The index takes 8 of 128 bits up to 256 lines, 16 above; the table is counted too."""
    codec = SharedTable(rows=4096, columns=4096, group=128, planes=2, offset=False, lines=lines)
    assert 8 * codec.nbytes / 4096**2 == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"lines": 0}, {"lines": 65537}, {"group": 4}, {"planes": 5}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    whole = {"rows": 1, "columns": 8, "group": 8, "planes": 2, "offset": False, "lines": 4}
    with pytest.raises(ValueError, match="validation error"):
        SharedTable.model_validate({**whole, **wrong})


@pytest.mark.parametrize("lines", [3, 300])
def test_an_index_beyond_the_table_is_refused(lines: int) -> None:
    codec = SharedTable(rows=2, columns=16, group=8, planes=2, offset=True, lines=lines)
    stored = codec.pack(drawn(codec, 0))
    codec.check(stored, "q")
    broken = stored["index"].clone()
    broken[1, 1] = 255
    with pytest.raises(InvalidArtifact, match=f"the table has {lines} lines"):
        codec.check({**stored, "index": broken}, "q")
    for suffix in stored:
        with pytest.raises(InvalidArtifact, match=suffix):
            codec.check({**stored, suffix: stored[suffix][:0]}, "q")
