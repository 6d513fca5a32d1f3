"""Time a transformer block and a whole model of random weights: packed, and in bf16."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from qdc.backends.triton.runtime import PackedRuntime
from qdc.models.families import BUILT_IN
from qdc.runtime.weights import dense_tensors

from .clock import Clock
from .linears import BASELINE, PACKED
from .peers import dtype_of
from .sizes import Sizes
from .weights import RandomWeights, codec_of

BLOCKS = "model.transformer.blocks"
STAGES = (("q_proj", "k_proj", "v_proj"), ("ff_proj", "up_proj"))
VOCABULARY = ("model.transformer.wte", "model.transformer.ff_out")


class Step(BaseModel):
    """A denoising step: logits of every position."""

    what: str
    """``block`` or ``model``."""
    batch: int
    length: int
    seconds: dict[str, float] = {}
    how: dict[str, str] = {}
    peak_bytes: dict[str, int] = {}
    """Of the device, weights included."""

    def tokens_per_second(self, method: str) -> float:
        """Positions that are computed in a second."""
        return self.batch * self.length / self.seconds[method]


class Models(BaseModel):
    """What both models take, and their steps."""

    layers: int
    weight_bytes: dict[str, int] = {}
    """What is resident when nothing runs."""
    finite: dict[str, bool] = {}
    """Whether all logits of a step were."""
    steps: list[Step] = []


def measure(clock: Clock, sizes: Sizes, found: Models) -> None:
    """Measure the packed model, then the other one. Adds to ``found``; raises ``OutOfTime``."""
    dtype = dtype_of(sizes.floating)
    for batch, length in sizes.steps:
        for what in ("block", "model"):
            found.steps.append(Step(what=what, batch=batch, length=length))
    for method, make in ((PACKED, packed_model), (BASELINE, dense_model)):
        _release(clock)
        before = _allocated(clock)
        module = make(sizes.config, dtype, clock.device)
        found.weight_bytes[method] = _resident(module, clock, before)
        for step in found.steps:
            clock.check()
            _time(clock, method, module, step, found, sizes.config["embedding_size"])
        del module


def packed_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A model of random packed weights, loaded as an artifact is: nothing dense is made."""
    module = BUILT_IN.build(config)[0]
    shapes = {name: tuple(map(int, shape)) for name, (_, shape) in dense_tensors(module).items()}
    linears = [n for n, part in module.named_modules() if type(part) in (nn.Linear, nn.Embedding)]
    codecs = {
        path: codec_of("uniform" if path in VOCABULARY else "multi-binary", rows, columns)
        for path in linears
        for rows, columns in [shapes[f"{path}.weight"]]
    }
    stages = tuple(
        tuple(f"{BLOCKS}.{index}.{name}" for name in names)
        for index in range(config["n_layers"])
        for names in STAGES
    )
    generator = torch.Generator(device).manual_seed(0)
    runtime = PackedRuntime(device, dtype, checked=False)
    runtime.check(module, codecs)
    runtime.fill(module, RandomWeights(codecs, stages, shapes=shapes, generator=generator))
    return module.requires_grad_(False)


def dense_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The same model with random weights in ``dtype``."""
    module = BUILT_IN.build(config)[0].to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return module


def _time(
    clock: Clock, method: str, module: nn.Module, step: Step, found: Models, vocabulary: int
) -> None:
    calls = _calls(module, step, vocabulary, clock.device)
    _release(clock)
    with torch.no_grad():
        result = calls[0]()
        step.peak_bytes[method] = _peak(clock)
        if step.what == "model":
            finite = bool(result.isfinite().all())
            found.finite[method] = found.finite.get(method, True) and finite
        del result
        step.seconds[method], step.how[method] = clock.time(calls)


def _calls(
    module: nn.Module, step: Step, vocabulary: int, device: torch.device
) -> list[Callable[[], Tensor]]:
    """The whole model, or every block in turn, each of which has weights of its own."""
    generator = torch.Generator(device).manual_seed(1)
    size = (step.batch, step.length)
    tokens = torch.randint(vocabulary, size, device=device, generator=generator)
    if step.what == "model":
        return [partial(module, tokens)]
    hidden = module.get_submodule(VOCABULARY[0])(tokens)
    blocks = module.get_submodule(BLOCKS)
    return [partial(block, hidden, None) for block in blocks.children()]


def _resident(module: nn.Module, clock: Clock, before: int) -> int:
    if clock.measures:
        _release(clock)
        return _allocated(clock) - before
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _release(clock: Clock) -> None:
    gc.collect()
    if clock.measures:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _allocated(clock: Clock) -> int:
    return torch.cuda.memory_allocated() if clock.measures else 0


def _peak(clock: Clock) -> int:
    return torch.cuda.max_memory_allocated() if clock.measures else 0
