"""The Python interface: compile a model, load what came out, load what went in."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from qdc.compiling.compiler import run_job
from qdc.compiling.job import plan_job
from qdc.distributed.launch import joined
from qdc.exporting.dense import export_artifact
from qdc.exporting.report import ExportReport
from qdc.frontend.select import parse_choice
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from qdc.runtime.device import find_device
from qdc.runtime.load import load_artifact, load_checkpoint
from qdc.text.records import Fields

PathLike = str | Path


def compile(
    model_dir: PathLike,
    passes: str = "default",
    backend: str = "reference",
    *,
    out: PathLike,
    calibration: PathLike | None = None,
    text_field: str = "text",
    chat_fields: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int | None = None,
    states: str = "bf16",
    host_memory: str | int | None = None,
    frontend: str = "auto",
    device: str = "cpu",
    deterministic_reduce: bool = False,
    force: bool = False,
    resume: bool = False,
    restart: bool = False,
    write_report: bool = True,
    plugins: PathLike | Sequence[PathLike] = (),
    dump_after: str | Sequence[str] = (),
    dump_dir: PathLike | None = None,
    stop_after: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CompileReport:
    """Compile a checkpoint to an artifact.

    Args:
        model_dir: local folder with ``config.json``, ``tokenizer.json`` and safetensors.
        passes: a pipeline, or the name of a preset.
        backend: an emitter, as ``name`` or ``name{option=value}``.
        out: folder of the artifact; it appears when it is complete.
        calibration: a text or jsonl file, or the folder of a dataset (``save_to_disk``, parquet,
            jsonl); the embedded text without one.
        text_field: field of a record that holds the text.
        chat_fields: ``prompt,answer``, the fields of a record that hold a prompt and its answer, or
            ``messages``, that of a list of messages: only the (last) answer is ever masked.
        samples: sequences to calibrate on; for every pass that has this option.
        length: tokens of a sequence; the same.
        seed: seed of windows and masks; the same.
        states: ``bf16`` or ``f32``, how calibration states wait in host memory.
        host_memory: bytes of them that stay in host memory, as a number or as in ``8G``; what is
            above waits in files beside ``out``. Half of the machine's memory if not given.
        frontend: ``fx`` for our own implementation of a family, ``export`` for the class of
            transformers, ``auto`` for the first of them that there is.
        device: ``cpu``, ``cuda`` or ``auto``, which is CUDA where it is there.
        deterministic_reduce: where torchrun has started several processes: give the bytes that one
            process gives, whatever their number; their calibration takes turns.
        force: replace an artifact that is at ``out``.
        resume: go on from an interrupted compile of ``out``, if one is there.
        restart: discard it.
        write_report: write ``report.json`` and ``report.html`` to the folder ``{out}-report``.
        plugins: files that define further passes, backends or families.
        dump_after: names of passes, or ``all``: write the graph after each.
        dump_dir: where; beside ``out`` if not given.
        stop_after: name of the last pass to run; no artifact is written then.
        progress: called with what is done, how much of it, and the total.

    Returns:
        Bits, bytes, errors, coverage, times.

    Raises:
        QdcError: the input is at fault; says what, where, and what to do.
    """
    given = {key: value for key, value in locals().items() if key != "progress"}
    with joined(device, ordered=deterministic_reduce) as world:
        job = plan_job(
            Path(model_dir),
            Path(out),
            standard_registry(_paths(plugins)),
            passes=passes,
            backend=backend,
            overrides={"samples": samples, "length": length, "seed": seed},
            calibration=None if calibration is None else Path(calibration),
            fields=Fields.parse(text_field, chat_fields),
            states=states,
            host_memory=host_memory,
            front_end=frontend,
            device=world.device,
            force=force,
            resume=resume,
            restart=restart,
            report=write_report,
            dump_after=[dump_after] if isinstance(dump_after, str) else dump_after,
            dump_folder=None if dump_dir is None else Path(dump_dir),
            stop_after=stop_after,
            command=f"qdc.compile({', '.join(f'{key}={value!r}' for key, value in given.items())})",
        )
        return run_job(job, progress, world)


def export(
    artifact: PathLike,
    *,
    out: PathLike,
    format: str = "dense",
    dtype: str = "bf16",
    verify: bool = False,
    force: bool = False,
    plugins: PathLike | Sequence[PathLike] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportReport:
    """Write an artifact as an ordinary checkpoint, which needs no qdc to be read.

    Args:
        artifact: folder that ``compile`` wrote.
        out: folder of the checkpoint; it appears when it is complete.
        format: ``dense``: every weight decoded, under the key names of the checkpoint.
        dtype: ``bf16``, ``f16`` or ``f32``, of all tensors.
        verify: prove first that all tensors and the logits are the artifact's, its weights rounded
            to ``dtype``; takes one dense copy of the model in fp32.
        force: replace an artifact or an export that is at ``out``.
        plugins: files that define codecs of third-party passes, or families.
        progress: called with what is done, how much of it, and the total.

    Returns:
        Bytes and files, and what was proved.

    Raises:
        QdcError: the artifact is damaged, ``out`` is taken, or the proof fails.
    """
    return export_artifact(
        Path(artifact),
        Path(out),
        standard_registry(_paths(plugins)),
        format=format,
        dtype=dtype,
        prove=verify,
        force=force,
        progress=progress,
    )


def load(
    artifact: PathLike,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    backend: str = "reference",
    plugins: PathLike | Sequence[PathLike] = (),
) -> nn.Module:
    """Load an artifact as a module: ``forward(input_ids, attention_mask=None)``.

    Through transformers it is ``import qdc.hf``, then ``AutoModel.from_pretrained(artifact)``;
    without that import transformers refuses an artifact, for it would give random weights to what
    it does not find. Engines that know neither take what ``export`` writes.

    Args:
        artifact: folder that ``compile`` wrote, with whichever backend.
        device: where the weights go.
        dtype: of the weights that are not packed, and of the logits; if not given that of the
            backend: fp32 of ``reference``, bf16 of ``triton``.
        backend: who runs it: ``reference`` decodes every weight when it loads, ``triton`` computes
            from packed weights on a GPU.
        plugins: files that define codecs of third-party passes, further backends or families.

    Returns:
        A module whose logits have shape (batch, length, vocabulary).

    Raises:
        QdcError: the artifact is damaged, incomplete or newer than this qdc, or the backend cannot
            run it here.
    """
    device = find_device(device)
    registry = standard_registry(_paths(plugins))
    return load_artifact(Path(artifact), registry, device, dtype, backend)


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
    families = standard_registry(_paths(plugins)).families
    return load_checkpoint(Path(model_dir), device, dtype, parse_choice(frontend), families)


def _paths(given: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]
