"""The tensors of a module in memory, shown as those of a checkpoint folder are."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint, UnsupportedModel
from qdc.ir.parts import Part
from qdc.ir.types import SHORT, Parameter

MODULE = "module"
"""The field of an artifact's ``config.json`` that describes the module it is of."""
LARGEST = 1e30
"""Where buffers are cut before they are summed up: masks hold the smallest number there is."""


class HeldModule(Checkpoint):
    """A view of a module's state: parameters by their first names, buffers beside them."""

    def __init__(self, module: nn.Module, tokenizer: Path | None) -> None:
        """Read names, dtypes and shapes.

        Args:
            module: its tensors are read when they are asked for.
            tokenizer: a folder with the files of a tokenizer, if there is one.

        Raises:
            UnsupportedModel: a tensor has no values, or a name or dtype that artifacts do not have.
        """
        tensors = (*module.named_parameters(), *module.named_buffers())
        hollow = [name for name, tensor in tensors if tensor.is_meta]
        if hollow:
            raise UnsupportedModel(
                "tensors of the module have no values: it is on the meta device", where=hollow
            )
        self.folder = Path(type(module).__name__) if tokenizer is None else tokenizer
        self._tokenizer = tokenizer
        self._state: dict[str, Tensor] = dict(module.named_parameters())
        self.extra = {
            name: buffer.detach().to("cpu").contiguous()
            for name, buffer in persistent_buffers(module).items()
        }
        self.headers = {name: _header(name, tensor) for name, tensor in self._state.items()}
        for name, tensor in self.extra.items():
            _header(name, tensor)
        self.left_out, self._keys, self._twins, self._files = {}, {}, {}, {}
        self.unused_fields = self.assumed_fields = ""
        self.config: dict[str, Any] = {
            MODULE: {
                "class": type(module).__name__,
                "buffers": {
                    name: fingerprint(buffer) for name, buffer in sorted(module.named_buffers())
                },
                "stored": {name: _digest(buffer) for name, buffer in sorted(self.extra.items())},
            }
        }

    def leave_out(self, names: Mapping[str, str]) -> None:
        """Do not show these tensors, each for its reason; they stay the caller's to load."""
        self.rename({n: n for n in self.headers if n not in names}, names, {})
        self.config[MODULE]["unread"] = sorted(names)

    def describe(self, facts: Mapping[str, Any], *, traced: str) -> None:
        """Note what the trace has shown: facts of the model, and the digest of its graph."""
        self.config[MODULE] |= {"facts": dict(facts), "traced": traced}

    def _read(self, part: Part) -> Tensor:
        whole = self._state[part.key].detach()
        return whole[part.cut].to("cpu").contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in (*self._state.values(), *self.extra.values()))

    def tokenizer_files(self) -> Iterator[Path]:
        """Files of the tokenizer that came along; none without one."""
        return iter(()) if self._tokenizer is None else super().tokenizer_files()


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module's state, in its order."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = module.state_dict(keep_vars=True)
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise UnsupportedModel("the module's state holds more than tensors", where=odd)
    return {name: value for name, value in state.items() if name not in parameters}


def fingerprint(buffer: Tensor) -> list[Any]:
    """Dtype, shape, and figures: whether two modules compute with the same buffer.

    The figures are the mean, the root mean square, and the mean with weights that rise from place
    to place, since a table of other order (a mask of the other side, interleaved angles) has the
    same mean and size. A digest would also tell apart what another machine rounds otherwise.
    """
    values = buffer.detach().to("cpu", torch.float64)
    values = values.nan_to_num(0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
    figures: tuple[Tensor | float, ...] = (0.0, 0.0, 0.0)
    if values.numel():
        rising = torch.linspace(0, 1, values.numel(), dtype=values.dtype)
        ordered = (values.flatten() * rising).mean()
        figures = values.mean(), values.square().mean().sqrt(), ordered
    dtype = "float" if buffer.is_floating_point() else str(buffer.dtype).removeprefix("torch.")
    return [dtype, list(buffer.shape), *(float(f"{float(figure):.4g}") for figure in figures)]


def _digest(buffer: Tensor) -> str:
    return sha256(buffer.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _header(name: str, tensor: Tensor) -> Parameter:
    dtype = SHORT.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise UnsupportedModel(
            f"tensor {name} has dtype {tensor.dtype}",
            help=f"known: {', '.join(SHORT)}",
        )
    try:
        return Parameter(name=name, dtype=dtype, shape=tuple(tensor.shape))
    except ValueError as error:
        raise InvalidCheckpoint(f"tensor {name!r} has an odd name or shape") from error
