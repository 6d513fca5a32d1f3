"""Token ids in the place of text: rows that a caller has encoded."""

import hashlib

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.text.source import TextSource

ROWS = "token ids"


def rows_source(rows: Tensor) -> TextSource:
    """Calibration samples ``i64[n, length]``; other integers are taken as well.

    Raises:
        InvalidCalibration: it is no such tensor.
    """
    whole = not rows.is_floating_point() and not rows.is_complex() and rows.dtype != torch.bool
    if rows.ndim != 2 or not rows.numel() or rows.is_meta or not whole or int(rows.min()) < 0:
        raise InvalidCalibration(
            f"found calibration ids of {rows.dtype} and shape {list(rows.shape)}, need integers "
            "[n, length], none of them negative",
            help="give one row of token ids a sample",
        )
    plain = rows.detach().to("cpu", torch.int64).contiguous()
    digest = hashlib.sha256(repr(list(plain.shape)).encode())
    digest.update(plain.numpy().data)
    return TextSource(ROWS, digest.hexdigest(), (), rows=plain)


def no_text(text: str) -> list[int]:
    """Stand in for a tokenizer where there is none. Raises ``InvalidCalibration``."""
    raise InvalidCalibration(
        f"a text of {len(text)} characters is to be read, and there is no tokenizer",
        help="give tokenizer=",
    )
