"""Can Triton kernels run here: on a GPU, or in Triton's interpreter if that was asked for."""

import os
from importlib.util import find_spec

import torch

from qdc.errors import QdcError
from qdc.version import install

INTERPRETER = "TRITON_INTERPRET"
"""Environment variable of Triton; must be set before the kernels are first imported."""
REFERENCE = "the backend reference runs everywhere: --backend reference"


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU and slowly."""
    return os.environ.get(INTERPRETER, "") == "1"


def require_triton(device: torch.device) -> None:
    """Refuse what no kernel can run on.

    Raises:
        QdcError: triton is not installed, or the device is not CUDA and the interpreter was not
            asked for.
    """
    if find_spec("triton") is None:
        raise QdcError(
            "the backend triton needs the package triton, which is not installed",
            help=f"{install('triton')}; {REFERENCE}",
        )
    if device.type != "cuda" and not interpreting():
        raise QdcError(
            f"the backend triton runs on CUDA devices, not on {device.type}",
            help=f"{REFERENCE}; {INTERPRETER}=1 in the environment runs the kernels in "
            "triton's interpreter, for tests",
        )
    if device.type == "cuda" and interpreting():
        raise QdcError(
            f"{INTERPRETER}=1 asks for the interpreter, which runs on the CPU alone",
            help=f"unset {INTERPRETER}, or use --device cpu",
        )
