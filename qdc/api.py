"""The Python interface: compile a model, load what came out, load what went in."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import torch
from torch import nn

from qdc.cli.blame import plugin_of
from qdc.comparing.compare import compare_methods
from qdc.comparing.options import CompareKeywords, CompareOptions
from qdc.comparing.table import CompareResult
from qdc.compiling.compiler import compile_model
from qdc.compiling.given import given_module
from qdc.compiling.options import CompileKeywords, CompileOptions, ModuleKeywords
from qdc.errors import QdcError
from qdc.exporting.dense import export_artifact
from qdc.exporting.options import ExportKeywords, ExportOptions
from qdc.exporting.report import ExportReport
from qdc.frontend.select import parse_choice
from qdc.options import Options, PathLike
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from qdc.runtime.device import find_device
from qdc.runtime.given import load_module
from qdc.runtime.load import load_artifact, load_checkpoint
from qdc.runtime.options import AUTO
from qdc.stopping import is_stop
from qdc.units import StepProgress

Function = TypeVar("Function", bound=Callable[..., Any])


PROGRESS = "progress: called with what is done, how much of it, and the total."


def _takes(kind: type[Options]) -> Callable[[Function], Function]:
    """Give a function the signature and the documented arguments of options, and ``progress``."""

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        parameters = [*kind.signature().parameters.values(), own.parameters["progress"]]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        before, returns, after = (function.__doc__ or "").partition("    Returns:")
        arguments = f"    Args:\n{kind.documentation()}\n        {PROGRESS}\n\n"
        function.__doc__ = f"{before}{arguments}{returns}{after}"
        return function

    return decorate


@contextmanager
def _plugins_end_no_process() -> Iterator[None]:
    """Make an error of what would end the caller's process, or be no error to it.

    Raises:
        QdcError: a plugin raised ``SystemExit``, or else what is no ``Exception``. Signals of the
            caller, and what its own code raises, go their way.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        owner = "" if is_stop(error) else plugin_of(error)
        if not owner:
            raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise QdcError(
            f"{owner}, would have ended the process: {what}",
            help="a plugin returns, or raises an Exception; this is a bug of the plugin",
        ) from error


@overload
def compile(asked: CompileOptions, /, *, progress: StepProgress | None = None) -> CompileReport: ...
@overload
def compile(
    model_dir: PathLike,
    passes: str = "default",
    backend: str = "reference",
    *,
    progress: StepProgress | None = None,
    **options: Unpack[CompileKeywords],
) -> CompileReport: ...
@overload
def compile(
    module: nn.Module,
    passes: str = "default",
    backend: str = "reference",
    *,
    progress: StepProgress | None = None,
    **options: Unpack[ModuleKeywords],
) -> CompileReport: ...
@_takes(CompileOptions)
def compile(*given: Any, progress: StepProgress | None = None, **options: Any) -> CompileReport:
    """Compile a checkpoint, or a torch module, to an artifact.

    Arguments are the fields of ``CompileOptions``, of which a ready one may stand in place of all.
    A ``torch.nn.Module`` may stand in the place of ``model_dir``: ``forward(input_ids)`` gives
    logits ``[batch, length, vocabulary]``. It has further arguments, see ``ModuleKeywords``, and
    ``calibration`` may be token ids ``i64[n, length]``.

    Returns:
        Bits, bytes, errors, coverage, times.

    Raises:
        QdcError: the input is at fault; says what, where, and what to do.
        TypeError: an argument is unknown or lacking.
    """
    module = options.get("module", given[0] if given else None)
    if not isinstance(module, nn.Module):
        asked = CompileOptions.from_call("qdc.compile", *given, **options)
        with _plugins_end_no_process():
            return compile_model(asked, progress)
    rest = given[1:] if given and given[0] is module else given
    options.pop("module", None)
    title = Path(type(module).__name__)
    with given_module(module, options) as (taken, left):
        asked = CompileOptions.from_call("qdc.compile", title, *rest, **left)
        with _plugins_end_no_process():
            return compile_model(asked, progress, command="qdc.compile(module, ...)", given=taken)


@overload
def compare(asked: CompareOptions, /, *, progress: StepProgress | None = None) -> CompareResult: ...
@overload
def compare(
    model_dir: PathLike,
    methods: str | Sequence[str],
    *,
    progress: StepProgress | None = None,
    **options: Unpack[CompareKeywords],
) -> CompareResult: ...
@_takes(CompareOptions)
def compare(*given: Any, progress: StepProgress | None = None, **options: Any) -> CompareResult:
    """Compile a checkpoint by several methods, and judge them on the same masks.

    Arguments are the fields of ``CompareOptions``, of which a ready one may stand in place of all.
    Each method runs in a process of its own. Results are kept in ``out``: the same call goes on
    where an earlier one has ended.

    Returns:
        A row a method, and paired differences of what is varied. ``failed`` are the rows of methods
        that have failed.

    Raises:
        QdcError: what is asked for cannot be meant, or the model or a text is at fault.
        TypeError: an argument is unknown or lacking.
    """
    return compare_methods(
        CompareOptions.from_call("qdc.compare", *given, **options), None, progress
    )


@overload
def export(asked: ExportOptions, /, *, progress: StepProgress | None = None) -> ExportReport: ...
@overload
def export(
    artifact: PathLike, *, progress: StepProgress | None = None, **options: Unpack[ExportKeywords]
) -> ExportReport: ...
@_takes(ExportOptions)
def export(*given: Any, progress: StepProgress | None = None, **options: Any) -> ExportReport:
    """Write an artifact as an ordinary checkpoint, which needs no qdc to be read.

    Arguments are the fields of ``ExportOptions``, of which a ready one may stand in place of all.

    Returns:
        Bytes and files, and what was proved.

    Raises:
        QdcError: the artifact is damaged, ``out`` is taken, or the proof fails.
        TypeError: an argument is unknown or lacking.
    """
    asked = ExportOptions.from_call("qdc.export", *given, **options)
    with _plugins_end_no_process():
        return export_artifact(asked, standard_registry(asked.plugins), progress)


def load(
    artifact: PathLike,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    backend: str = AUTO,
    plugins: PathLike | Sequence[PathLike] = (),
    module: nn.Module | None = None,
    verify: bool = True,
) -> nn.Module:
    """Load an artifact as a module: ``forward(input_ids, attention_mask=None)``.

    Through transformers it is ``import qdc.hf``, then ``AutoModel.from_pretrained(artifact)``;
    without that import transformers refuses an artifact, for it would give random weights to what
    it does not find. Engines that know neither take what ``export`` writes.

    Args:
        artifact: folder that ``compile`` wrote, with whichever backend.
        device: where the weights go.
        dtype: of the weights that are not packed, and of the logits; if not given that of the
            backend: fp32 of ``cpu`` and ``reference``, bf16 of ``triton``.
        backend: who runs it: ``cpu`` computes from packed weights on a CPU, with products in 16
            bits where that is faster, ``triton`` on a GPU; ``reference`` decodes every weight when
            it loads. ``auto`` is ``cpu`` on a CPU, if llvmlite is installed, else ``reference``.
        plugins: files that define codecs of third-party passes, further backends or families.
        module: for an artifact of a module: one that is built as the compiled one was, whatever
            its weights. It is given those of the artifact, and returned.
        verify: whether what is read must have the digests that the artifact was written with. One
            that has none is taken, which the log says.

    Returns:
        A module whose logits have shape (batch, length, vocabulary).

    Raises:
        QdcError: the artifact is damaged, incomplete or newer than this qdc, or the backend cannot
            run it here; or the module is not like the one that was compiled.
    """
    device = find_device(device)
    folder = Path(artifact)
    with _plugins_end_no_process():
        registry = standard_registry(_paths(plugins))
        if module is not None:
            return load_module(folder, module, registry, device, dtype, backend, verify=verify)
        return load_artifact(folder, registry, device, dtype, backend, verify=verify)


def load_original(
    model_dir: PathLike,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    frontend: str = "auto",
    plugins: PathLike | Sequence[PathLike] = (),
) -> nn.Module:
    """Load an uncompiled checkpoint as the same kind of module as ``load``.

    ``frontend`` is that of ``compile``; ``plugins`` are files that define further families.

    Raises:
        QdcError: the checkpoint is damaged, incomplete, or an artifact.
    """
    device = find_device(device)
    with _plugins_end_no_process():
        families = standard_registry(_paths(plugins)).families
        return load_checkpoint(Path(model_dir), device, dtype, parse_choice(frontend), families)


def _paths(given: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]
