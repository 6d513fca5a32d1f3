"""Whether an artifact gives the same when its weights stay packed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qdc

FAST, EXACT = 2e-2, 1e-4
"""Of the norm of the logits: many products in 16 bits, and fp32 sums in another order."""


@torch.no_grad()
def assert_packed_alike(
    out: Path, call: Callable[[nn.Module], Tensor], make: Callable[[], Any] | None = None
) -> None:
    """Compare logits of the backend ``cpu``, in both arithmetics, with the reference's.

    Args:
        out: the artifact.
        call: what is compared.
        make: builds the module that the artifact is of, if it is of one.
    """

    def loaded(backend: str) -> nn.Module:
        given = {} if make is None else {"module": make()}
        return qdc.load(out, backend=backend, **given)

    wanted = call(loaded("reference")).double()
    for backend, allowed in (("cpu", FAST), ("cpu{arithmetic=f32}", EXACT)):
        found = call(loaded(backend)).double()
        assert found.shape == wanted.shape
        assert float((found - wanted).norm()) <= allowed * float(wanted.norm()), backend
