"""What linears do with what they read and give, put into a loaded model.

A hook in front of a linear gives it other inputs: whatever multiplies there, dense or packed, then
multiplies those. A linear whose inputs and weights are both whole numbers asks for the codes
instead (``qdc.runtime.integers``). Which tokens are masked is seen where they are looked up, and
held for the running context until the call of the model ends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn

from qdc.errors import InvalidArtifact, QdcError
from qdc.format.tokenquantizer import TokenQuantizer
from qdc.format.weights import Weights
from qdc.ir.activations import LayerActivations, RowFormat
from qdc.ir.keys import file_key
from qdc.models.asked import current_asked
from qdc.numerics.hadamard import RandomHadamard, transform_size
from qdc.numerics.rowquantizer import RowCodes

READS: Final = "reads"
GIVES: Final = "gives"
"""Under which a linear has what is done with its inputs and its outputs."""
NO_PLACE = "an exported file has no place for what linears do with their inputs"
RUN_IT = "run it by qdc, or compile without the passes that change what linears read"
_MASKED: ContextVar[Tensor | None] = ContextVar("masked tokens", default=None)


class InputTransform(nn.Module):
    """What is done with the inputs of one linear: rotated, then quantized, each if asked for."""

    def __init__(self, columns: int, does: LayerActivations, stored: Mapping[str, Tensor]) -> None:
        """Take what the configuration says and the stored tensors of static scales, by suffix."""
        super().__init__()
        self.form, self.size = does.input, 0
        if does.rotation is not None:
            rotation = RandomHadamard.of(columns, does.rotation)
            self.size = rotation.size
            # No part of a state dict: the seed says all of it.
            self.register_buffer("signs", rotation.signs, persistent=False)
        self._static = tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def group(self) -> int:
        """Columns of an input that share a scale; 0 for all of them."""
        return 0 if self.form is None else self.form.group

    def forward(self, x: Tensor) -> Tensor:
        """``[..., columns]``, rotated and rounded to levels, in the dtype of ``x``."""
        rotated = self.rotated(x)
        if self.form is not None:
            rotated = self._quantizer(self.form).round(rotated, _masked_of(self.form, x))
        return rotated.to(x.dtype)

    def codes(self, x: Tensor) -> RowCodes:
        """Codes of ``[..., columns]``, rotated before that if asked for."""
        assert self.form is not None, "codes are asked of quantized inputs alone"
        return self._quantizer(self.form).quantize(self.rotated(x), _masked_of(self.form, x))

    def rotated(self, x: Tensor) -> Tensor:
        """In fp32, with additions in the order of the format."""
        wide = x.float()
        if not self.size:
            return wide
        return RandomHadamard(self.get_buffer("signs").float(), self.size).forward(wide)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        turned = [f"rotated by {self.size}"] if self.size else []
        return ", ".join([*turned, *([] if self.form is None else [self.form.text()])])

    def _quantizer(self, form: RowFormat) -> TokenQuantizer:
        stored = {name: self.get_buffer(name) for name in self._static}
        device = next(iter(stored.values())).device if stored else "cpu"
        return TokenQuantizer.of(form, stored, device)


class OutputTransform(nn.Module):
    """What is done with what one linear gives: quantized, token by token."""

    def __init__(self, form: RowFormat) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """``[..., rows]``, rounded to levels, in the dtype of ``x``."""
        rounded = TokenQuantizer(self.form).round(x.float(), _masked_of(self.form, x))
        return rounded.to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return self.form.text()


def check_activations(body: nn.Module, activations: Mapping[str, LayerActivations]) -> None:
    """Refuse what cannot be put in front of the modules of a model on meta.

    Raises:
        InvalidArtifact: names the layers that are no linears, or cannot be rotated.
    """
    leaves = dict(body.named_modules())
    for path, does in activations.items():
        linear = leaves.get(path)
        if type(linear) is not nn.Linear:
            raise InvalidArtifact("activations are named of what is no linear", where=[path])
        if does.rotation is not None and transform_size(linear.in_features) < 2:
            raise InvalidArtifact("a linear of so many columns cannot be rotated", where=[path])


def beyond_rotations(
    activations: Mapping[str, LayerActivations],
) -> dict[str, LayerActivations]:
    """Those linears that do more with activations than to rotate what they read."""
    return {path: does for path, does in activations.items() if not does.only_rotates}


def refuse_activations(
    activations: Mapping[str, LayerActivations], what: str, help: str, *, rotates: bool = False
) -> None:
    """Refuse an artifact whose linears do something with activations.

    Args:
        activations: of the artifact.
        what: who cannot follow that, as the sentence begins.
        help: what to do instead.
        rotates: whether rotations of inputs are no obstacle.

    Raises:
        QdcError: there are any.
    """
    refused = beyond_rotations(activations) if rotates else activations
    if refused:
        every = refused.values()
        does = {
            "rotate what they read": not rotates and any(a.rotation is not None for a in every),
            "quantize what they read": any(a.input is not None for a in every),
            "quantize what they give": any(a.output is not None for a in every),
        }
        said = ", or ".join(text for text, found in does.items() if found)
        raise QdcError(
            f"{what}: {len(refused)} linears of the artifact {said}",
            where=list(refused)[:3],
            help=help,
        )


def attach(
    module: nn.Module,
    body: nn.Module,
    weights: Weights,
    activations: Mapping[str, LayerActivations],
    mask_token: int | None,
    device: torch.device | str,
) -> None:
    """Put what linears do with activations around them, in a model that is filled.

    Args:
        module: what is called with token ids.
        body: the part of it whose paths are those of the artifact.
        weights: tensors of the artifact.
        activations: of the linears that do not do it by themselves.
        mask_token: what masked places hold.
        device: where the model is.

    Raises:
        InvalidArtifact: static scales are damaged, or the mask token is no token of the model.
    """
    for path, does in activations.items():
        linear: Any = body.get_submodule(path)
        columns = weights.codecs[path].columns
        stored = {
            suffix: weights.plain(file_key(path, suffix)) for suffix in does.specification(columns)
        }
        if does.input is not None:
            _check_stored(path, does.input, stored)
        if does.rotation is not None or does.input is not None:
            linear.add_module(READS, InputTransform(columns, does, stored).to(device))
            if not getattr(linear, "reads_codes", False):
                linear.register_forward_pre_hook(_read)
        if does.output is not None:
            linear.add_module(GIVES, OutputTransform(does.output))
            linear.register_forward_hook(_give)
    if not weights.traceable:
        _require_calls(module, body, activations)
    if any(does.by_class for does in activations.values()):
        assert mask_token is not None, "the configuration was checked"
        _tell_masked(module, body, mask_token)


def _check_stored(path: str, form: RowFormat, stored: Mapping[str, Tensor]) -> None:
    """Refuse static scales that no range has, and zero points that are no codes."""
    scale, zero = stored.get("input_scale"), stored.get("input_zero")
    if scale is not None and bool((scale < 0).any()):
        raise InvalidArtifact("input_scale holds negative numbers", where=[path])
    lowest, highest = form.quantizer.lowest, form.quantizer.highest
    if zero is not None and bool(((zero < lowest) | (zero > highest)).any()):
        raise InvalidArtifact(
            f"input_zero holds what is no code of {form.bits} bits: {lowest} to {highest}",
            where=[path],
        )


@contextmanager
def knowing_masked(masked: Tensor) -> Iterator[None]:
    """Let layers that are called by themselves know which tokens are masked, bool[b, length]."""
    token = _MASKED.set(masked)
    try:
        yield
    finally:
        _MASKED.reset(token)


def _require_calls(module: nn.Module, body: nn.Module, paths: Iterable[str]) -> None:
    """Refuse a model of other people's code that does not call its linears, in its first forward.

    It may read a weight and multiply by itself; then nothing is done with its inputs. Experts are
    left out, for not every one of them gets a token.
    """
    waiting = {path for path in paths if "experts" not in path.split(".")}
    hooks: list[Any] = []

    def seen(path: str) -> Callable[..., None]:
        return lambda *given: waiting.discard(path)

    def ended(model: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        for hook in hooks:
            hook.remove()
        if waiting:
            raise QdcError(
                f"the model does not call {len(waiting)} of its linears, and reads their weights "
                "itself: what is to be done with their inputs is not done",
                where=sorted(waiting)[:3],
                help="compile it again without rotate and quantize-activations",
            )

    hooks += [body.get_submodule(path).register_forward_hook(seen(path)) for path in waiting]
    hooks.append(module.register_forward_hook(ended))


def _tell_masked(module: nn.Module, body: nn.Module, mask_token: int) -> None:
    """Note which tokens are masked wherever tokens are looked up: in every use of the model.

    Raises:
        QdcError: there are several embeddings, and the model does not say which one reads tokens.
    """

    def look(embedding: nn.Module, given: tuple[Any, ...]) -> None:
        _MASKED.set(given[0] == mask_token)

    def forget(model: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        _MASKED.set(None)

    found: list[Any] = [part for part in body.modules() if hasattr(part, "num_embeddings")]
    of_transformers: Any = next(
        (part for part in module.modules() if hasattr(part, "get_input_embeddings")), None
    )
    if of_transformers is not None:
        found = [of_transformers.get_input_embeddings()]
    if len(found) != 1:
        raise QdcError(
            f"the model has {len(found)} embeddings, and which of them reads tokens is not known",
            help="compile it again without classes=masked",
        )
    if mask_token >= found[0].num_embeddings:
        raise InvalidArtifact(
            f"mask_token is {mask_token}, and the model has {found[0].num_embeddings} tokens: no "
            "token would be masked"
        )
    found[0].register_forward_pre_hook(look)
    module.register_forward_hook(forget, always_call=True)


def _masked_of(form: RowFormat, x: Tensor) -> Tensor | None:
    """Which tokens of a value are masked; None where nothing asks.

    Raises:
        QdcError: the value does not have one row for each token of the call.
    """
    if len(form.clip) == 1:
        return None
    masked, asked = _MASKED.get(), current_asked()
    if masked is not None and asked is not None and x.shape[:-1] != masked.shape:
        # Behind the attention of the last block there are positions that somebody reads alone.
        narrowed = asked.narrow(masked)
        masked = narrowed if x.ndim > 2 else asked.pick(narrowed)
    if masked is None or masked.shape != x.shape[:-1]:
        raise QdcError(
            f"a linear that tells masked tokens from visible ones was given {tuple(x.shape)}, and "
            f"the model {'no token ids' if masked is None else tuple(masked.shape)}",
            help="call the whole model with input_ids, not a part of it",
        )
    return masked


def _read(linear: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (linear.get_submodule(READS)(given[0]), *given[1:])


def _give(linear: nn.Module, given: tuple[Any, ...], result: Tensor) -> Any:
    return linear.get_submodule(GIVES)(result)
