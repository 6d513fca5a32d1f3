"""Prove that an exported checkpoint is the artifact: all tensors, and the logits of both models.

What is compared to the last bit: every tensor with what the artifact decodes to, rounded to the
exported dtype; and the logits of the artifact, its weights rounded so, with those of the exported
checkpoint, both computed in fp32. At f32 nothing is rounded, and the logits are simply the
artifact's. Rotations of inputs are multiplied out of the weights of both. One dense copy of the
model is in memory at a time, with four bytes a weight.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from qdc.artifact.config import plain_config
from qdc.checkpoint.folder import BYTE_PAIR_FILES, Checkpoint
from qdc.errors import ExportDiffers
from qdc.exporting.report import Probe, Verification
from qdc.frontend.select import read_facts, show_by_name
from qdc.ir.tensors import torch_dtype
from qdc.models.families import Families
from qdc.numerics.random_numbers import uniforms
from qdc.pipeline.registry import Registry
from qdc.runtime.dense import DenseRuntime, UnrotatedRuntime
from qdc.runtime.load import (
    OpenedArtifact,
    fill_artifact,
    front_end_of,
    load_checkpoint,
    open_artifact,
)
from qdc.text.source import read_text
from qdc.text.tokenizer import TOKENIZER, encoder, load_tokenizer
from qdc.units import StepProgress

BATCH, LENGTH = 2, 64
"""Size of a batch of tokens."""
HIDDEN = 4
"""One in so many tokens of the last row is padding."""
PASSES = 3
Batch = tuple[Tensor, Tensor]
"""Tokens and attention mask."""


def verify(
    opened: OpenedArtifact, folder: Path, registry: Registry, dtype: str, notify: StepProgress
) -> Verification:
    """Compare a written checkpoint with the artifact it was made from.

    Args:
        opened: the artifact.
        folder: the checkpoint.
        registry: knows the codecs.
        dtype: of the checkpoint's tensors.
        notify: called with what is done, how much of it, and the total.

    Raises:
        ExportDiffers: they are not equal; names the tensors and the batches.
    """
    rounded_to = torch_dtype(dtype)
    written = Checkpoint(folder)
    show_by_name(opened.module, written)
    differing = _differing(opened, written, rounded_to, notify)
    batches = _batches(opened, registry.families)
    module = _loaded(opened, registry, DenseRuntime)
    exact = _logits(module, batches)
    notify("compare logits", 1, PASSES)
    if opened.weights.rotated:
        del module
        module = _loaded(opened, registry, UnrotatedRuntime)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(rounded_to).float()
    expected = _logits(module, batches)
    notify("compare logits", 2, PASSES)
    del module
    exported = load_checkpoint(
        folder, "cpu", torch.float32, front_end_of(opened.quantization), registry.families
    )
    found = _logits(exported, batches)
    notify("compare logits", 3, PASSES)
    probes = tuple(
        Probe(
            name=name,
            tokens=batches[name][0].numel(),
            equal=torch.equal(found[name], expected[name]),
            difference=float((found[name] - expected[name]).abs().max()),
            rounding=float((expected[name] - exact[name]).abs().max()),
        )
        for name in batches
    )
    made = Verification(tensors=len(opened.names), differing=tuple(differing), probes=probes)
    if not made.holds:
        raise _difference(made)
    return made


def _loaded(opened: OpenedArtifact, registry: Registry, runtime: type[DenseRuntime]) -> nn.Module:
    """The artifact once more, dense in fp32; it was verified when it was exported."""
    again = open_artifact(opened.source.folder, registry, verify=False)
    return fill_artifact(again, runtime(torch.device("cpu"), torch.float32), "reference")


def _differing(
    opened: OpenedArtifact, written: Checkpoint, dtype: torch.dtype, notify: StepProgress
) -> list[str]:
    """Tensors that are not what the artifact decodes to, or are in one of the two alone."""
    names = opened.names
    differing = sorted(set(written.headers) ^ set(names))
    for done, name in enumerate(names):
        if name in written and not torch.equal(written.tensor(name), opened.tensor(name).to(dtype)):
            differing.append(name)
        notify("compare tensors", done + 1, len(names))
    return differing


def _batches(opened: OpenedArtifact, families: Families) -> dict[str, Batch]:
    """Random tokens, the last row padded, and text, if there is a tokenizer to read it with."""
    folder = opened.source.folder
    config = plain_config(opened.source.config)
    facts = read_facts(config, folder, front_end_of(opened.quantization), families)
    length = min(LENGTH, facts.max_length)
    drawn = uniforms(BATCH * length, "verify an export") * facts.vocabulary
    mask = torch.ones(BATCH, length, dtype=torch.int64)
    mask[-1, length - length // HIDDEN :] = 0
    found = {"random tokens": (drawn.long().reshape(BATCH, length), mask)}
    if any((folder / name).is_file() for name in (TOKENIZER, BYTE_PAIR_FILES[0])):
        ids = encoder(load_tokenizer(folder), "none")(read_text(None).documents[0])[:length]
        text = torch.tensor([ids])
        found["text"] = (text, torch.ones_like(text))
    return found


@torch.no_grad()
def _logits(module: nn.Module, batches: dict[str, Batch]) -> dict[str, Tensor]:
    return {name: module(*batch) for name, batch in batches.items()}


def _difference(made: Verification) -> ExportDiffers:
    wrong = [
        f"logits of {probe.name}: up to {probe.difference:.3g} apart"
        for probe in made.probes
        if not probe.equal
    ]
    return ExportDiffers(
        f"the export is not the artifact: {len(made.differing)} of {made.tensors} tensors differ",
        where=[*wrong, *made.differing],
        help="the disk or the memory has changed what was written, or this is a bug of qdc",
    )
