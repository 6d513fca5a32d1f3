"""A model twice: as we load it, and as the Hugging Face model that libraries know how to walk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import qdc
from qdc.errors import QdcError
from qdc.frontend.native import NativeModel
from qdc.models.decoder import Decoder
from qdc.models.llada import LLADA

TOLERANCE = 1e-4
"""Of logits and of blocks: what is further apart is no rounding."""


@dataclass(frozen=True)
class Pair:
    """Two modules of one function, their weights apart; a library changes the second alone."""

    original: nn.Module
    native: LlamaForCausalLM
    paths: Mapping[str, str]
    """Our path of every linear that is quantized, by its path in the native model."""
    embed: Callable[[Tensor], Tensor]
    """Tokens ``i64[batch, T]`` to what our first block reads."""
    block: Callable[[int, Tensor], Tensor]
    """Our block of a number on an input ``f32[batch, T, width]``."""
    causal: bool = False
    """Whether a position sees none behind it."""


def open_pair(folder: Path, probe: Tensor) -> Pair:
    """Load our module and the native one, and prove that they are one function.

    Args:
        folder: a checkpoint of LLaDA, or a causal one of the Llama of transformers.
        probe: ``i64[batch, T]``, on which logits are compared.

    Raises:
        QdcError: another family, or a logit differs by more than 1e-4.
    """
    from . import causal, native

    original = qdc.load_original(folder)
    if isinstance(original, Decoder) and original.layout.names == LLADA.names:
        found = native.pair(original)
    elif isinstance(original, NativeModel) and causal.is_llama(folder, original):
        found = causal.pair(folder, original)
    else:
        raise QdcError(
            "peers know LLaDA and causal Llamas of transformers, and the model is of another "
            "family",
            help="benchmark examples/tiny-llada, or what bench.smollm2 makes",
        )
    with torch.no_grad():
        apart = float((found.native(probe).logits - original(probe)).abs().max())
    if not apart <= TOLERANCE:
        raise QdcError(
            f"the native model's logits are {apart:.1e} away from ours, at most {TOLERANCE:g} is "
            "rounding",
            help="check bench/peers/native.py and causal.py against this version of transformers",
        )
    return found


def dense_weights(native: nn.Module, paths: Mapping[str, str]) -> dict[str, Tensor]:
    """Read the weights back under our names, ``f32[rows, columns]``."""
    return {
        ours: native.get_parameter(f"{theirs}.weight").detach().float().clone()
        for theirs, ours in paths.items()
    }
