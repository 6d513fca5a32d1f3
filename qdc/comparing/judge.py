"""What a made model is worth: its losses beside the original's, agreement, and drift."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from qdc.comparing.measure import OnDevice, drift, forwards, losses
from qdc.comparing.result import Losses
from qdc.comparing.work import Judging, Work
from qdc.disk import replace_bytes
from qdc.errors import QdcError
from qdc.evaluation.batches import fitting_batch
from qdc.evaluation.evaluate import BATCH
from qdc.evaluation.held_out import HeldOut, held_out
from qdc.evaluation.in_blocks import at_once, block_by_block
from qdc.evaluation.next_token import require_causal
from qdc.frontend.encoding import open_encoder
from qdc.frontend.opening import open_model
from qdc.ir.facts import ModelFacts
from qdc.models.document_tokens import DocumentTokens
from qdc.models.families import Families
from qdc.pipeline.registry import standard_registry
from qdc.runtime.device import find_device
from qdc.runtime.load import load_checkpoint
from qdc.text.source import TextSource, read_text
from qdc.units import StepProgress

KEPT = TypeAdapter(tuple[Losses, ...])


def read_held_out(
    model: Path,
    facts: ModelFacts,
    judging: Judging,
    document_tokens: DocumentTokens,
    families: Families,
) -> tuple[HeldOut, TextSource]:
    """Cut the held-out text into windows. Raises ``QdcError`` for text that cannot be measured."""
    if facts.mask_token_id is None:
        require_causal(facts)
    size = facts.max_length if judging.length is None else judging.length
    if size > facts.max_length:
        raise QdcError(
            f"held-out windows of {size} tokens are beyond the model's {facts.max_length}",
            help="choose a smaller --held-length",
        )
    source = read_text(judging.text, judging.field)
    encode = open_encoder(model, document_tokens, families=families)
    found = held_out(source.documents, encode, size, judging.windows, judging.pack)
    if len(found.windows) < 2:
        raise QdcError(
            "the held-out text gives 1 window, need at least 2 for a standard error",
            help="give longer held-out text, or a smaller --held-length",
        )
    if facts.mask_token_id is not None and bool((found.windows == facts.mask_token_id).any()):
        raise QdcError(
            "the held-out text, or what the tokenizer puts around it, holds the mask token",
            where=[source.name],
            help="only text without it can be masked and compared",
        )
    return found, source


def judge(work: Work, candidate: nn.Module, tell: StepProgress) -> dict[str, Any]:
    """Fields of the result that come from an evaluation; none if the work asks for none."""
    judging = work.judging
    if judging is None:
        return {}
    families = standard_registry(work.plugins).families
    device = find_device(work.device)
    graph = open_model(work.model, families=families)[1].graph
    mask, shift = graph.model.mask_token_id, graph.model.logits_shift
    text, _ = read_held_out(work.model, graph.model, judging, work.document_tokens, families)
    module = load_checkpoint(work.model, device, torch.float32, families=families)
    original = OnDevice(module, device, shift)
    asked = (text.windows, mask, judging.ratios, judging.masks)
    by_blocks = graph.model.denoises_blocks and judging.behind_clean
    block = graph.model.attention_block if by_blocks else None
    read = at_once if block is None else block_by_block(block)
    size = text.windows.shape[1] * (1 if block is None else 2)
    batch = fitting_batch(BATCH, size, graph.model.vocabulary)
    counts = (len(text.windows), len(judging.ratios), judging.masks)

    def counted(what: str, *, compared: bool) -> "_Counter":
        total = forwards(*counts, compared=compared, masked=mask is not None, batch=batch)
        return _Counter(tell, what, total)

    with _alone(work.original):
        due = _kept(work.original)
        if due is None:
            told = counted("original", compared=False)
            due = losses(original, *asked, done=told, batch=batch, read=read)
            data = KEPT.dump_json(due, indent=1) + b"\n"
            replace_bytes(work.original, data)
    made = OnDevice(candidate, device, shift)
    told = counted("evaluate", compared=True)
    found = losses(made, *asked, original=original, done=told, batch=batch, read=read)
    tell("layers", 0, 1)
    return {
        "owners": tuple(text.owners.tolist()),
        "candidate": found,
        "original": due,
        "drift": drift(candidate, module, graph, text.windows, mask, device),
    }


class _Counter:
    """Tells how many forwards are done."""

    def __init__(self, tell: StepProgress, what: str, total: int) -> None:
        self.tell, self.what, self.total = tell, what, total
        self.passed = 0

    def __call__(self) -> None:
        self.passed += 1
        self.tell(self.what, self.passed, self.total)


def _kept(path: Path) -> Sequence[Losses] | None:
    """The original's losses, if another job has computed them."""
    try:
        return KEPT.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process after the other in: the first computes, the others find what it kept."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
