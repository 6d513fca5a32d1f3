"""``qdc eval --text``: masked cross-entropy on held-out text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from qdc.artifact.card import note_loss
from qdc.cli.evaluation_tables import print_comparison, print_comparisons, print_evaluation
from qdc.cli.models import Opened, open_runnable
from qdc.cli.next_token_tables import print_next, print_next_comparisons
from qdc.cli.report import report_of
from qdc.cli.terminal import console, print_json, progress, tell_left_out
from qdc.errors import QdcError
from qdc.evaluation.batches import fitting_batch
from qdc.evaluation.evaluate import Comparison, Evaluation, compare, evaluate, held_out
from qdc.evaluation.next_token import compare_next, evaluate_next, require_causal
from qdc.evaluation.noise import Noise
from qdc.evaluation.options import EvaluationOptions
from qdc.evaluation.results import NextToken, NextTokenComparison
from qdc.ir.facts import ModelFacts
from qdc.models.recalled import Recalled
from qdc.report.files import write_report
from qdc.report.model import CompileReport, EvaluationReport
from qdc.text.source import TextSource, read_text
from qdc.units import StepProgress

Result = Evaluation | Comparison | NextToken | NextTokenComparison
OF_MASKS = ("ratios", "seeds", "infills", "hide", "report")
"""Options that a model without mask token has no use for; the report's page is of masked losses."""
OF_GAPS = ("infills", "hide", "report")
"""Those that a model of canvases has no use for, which is measured at random tokens."""
PROBE = "def f(x):\n    return x + 1\n"


def evaluate_command(asked: EvaluationOptions, *, as_json: bool, as_markdown: bool = False) -> None:
    """Load models, measure on the same masks, print."""
    assert asked.text is not None, "an evaluation is of text or of tasks"
    report = report_of(asked.models[0]) if asked.report else None
    reference, candidates = split(asked)
    source = read_text(asked.text, asked.text_field)
    tell_left_out(source.name, source.left_out)
    with progress() as update:
        results = list(_results(candidates, reference, source, asked, update))
    if len(candidates) > 1:
        assert reference is not None
        pairs = list(zip(candidates, results, strict=True))
        if as_json:
            rows = [{"model": str(p), "result": r.model_dump(mode="json")} for p, r in pairs]
            print_json({"against": str(reference), "models": rows})
            return
        ahead = [(p, r) for p, r in pairs if isinstance(r, NextTokenComparison)]
        if ahead:
            print_next_comparisons(console(), reference, ahead, markdown=as_markdown)
            return
        found = [(p, r) for p, r in pairs if isinstance(r, Comparison)]
        print_comparisons(console(), reference, found, markdown=as_markdown)
        return
    [result] = results
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif isinstance(result, NextToken):
        print_next(console(), result, markdown=as_markdown)
    elif isinstance(result, NextTokenComparison):
        assert reference is not None
        rows_of = [(candidates[0], result)]
        print_next_comparisons(console(), reference, rows_of, markdown=as_markdown)
    elif isinstance(result, Comparison):
        print_comparison(console(), result, markdown=as_markdown)
    else:
        print_evaluation(console(), result, markdown=as_markdown)
    if report is not None and isinstance(result, Evaluation | Comparison):
        _add(report, asked, source, result)


def split(asked: EvaluationOptions) -> tuple[Path | None, Sequence[Path]]:
    """The model that the others are compared with, and the others.

    Of several models it is the first one, unless ``against`` names it.
    """
    models = asked.models
    if asked.against is not None:
        return asked.against, models
    return (models[0], models[1:]) if len(models) > 1 else (None, models)


def check_alike(candidate: Opened, original: Opened) -> None:
    """Raise ``QdcError`` unless both read and predict the same tokens."""
    if candidate.facts != original.facts or candidate.encode(PROBE) != original.encode(PROBE):
        raise QdcError(
            "the two models do not share vocabulary, mask token and tokenizer",
            help="compare an artifact with the checkpoint that it was compiled from",
        )


def _results(
    candidates: Sequence[Path],
    reference: Path | None,
    source: TextSource,
    asked: EvaluationOptions,
    update: StepProgress,
) -> Iterator[Result]:
    """Measure one candidate after the other: two models at most are in memory."""
    original, against = None, None
    for path in candidates:
        with _loading(path, update):
            candidate = open_runnable(
                path, asked.device, asked.plugins, asked.backend, asked.document_tokens,
                verify=asked.verify, exact=True,
            )  # fmt: skip
        if reference is not None:
            if original is None:
                with _loading(reference, update):
                    original = open_runnable(
                        reference, asked.device, asked.plugins,
                        document_tokens=asked.document_tokens, verify=asked.verify,
                        exact=True,
                    )  # fmt: skip
                # All candidates are measured on the same masks: what it predicts is wanted again.
                against = Recalled(original) if len(candidates) > 1 else original
            check_alike(candidate, original)
        yield _measure(candidate, against, source, asked, path.name, update)
        del candidate


def _measure(
    candidate: Opened,
    original: Opened | Recalled | None,
    source: TextSource,
    asked: EvaluationOptions,
    name: str,
    update: StepProgress,
) -> Result:
    facts, hides = candidate.facts, _hides(candidate.facts)
    if hides is None:
        _refuse(asked, OF_MASKS, "the next-token loss of the model is measured")
        require_causal(facts)
    elif facts.renoises:
        _refuse(asked, OF_GAPS, "the loss at random tokens of a canvas is measured")
    size = facts.max_length if asked.length is None else asked.length
    if size > facts.max_length:
        raise QdcError(
            f"--length {size} is beyond the model's {facts.max_length} tokens",
            help="choose a smaller length",
        )
    windows, owners, text = held_out(
        source.documents, candidate.encode, size, asked.windows, asked.pack
    )
    if facts.mask_token_id is not None and bool((windows == facts.mask_token_id).any()):
        raise QdcError(
            "the held-out text, or what the tokenizer puts around it, holds the mask token",
            where=[source.name],
            help="only text without it can be masked and compared",
        )
    documents, drawn = len(source.documents), range(asked.seeds)
    behind_clean = _blocks(facts, asked)
    read = size if behind_clean is None else 2 * size  # the clean text beside the masked one
    batch = fitting_batch(asked.batch, read, facts.vocabulary)

    def tick(done: int, total: int) -> None:
        update(f"evaluate {name}"[:22], done, total)

    if hides is None:
        settings = (batch, tick, documents, owners, text)
        if original is None:
            return evaluate_next(candidate, windows, *settings)
        return compare_next(candidate, original, windows, *settings)
    if original is None:
        return evaluate(
            candidate, windows, hides, asked.ratios, drawn, batch,
            progress=tick, documents=documents, owners=owners, text=text,
            behind_clean=behind_clean,
        )  # fmt: skip
    return compare(
        candidate, original, windows, hides, asked.ratios, drawn, batch,
        progress=tick, documents=documents, owners=owners, text=text,
        infills=0 if facts.renoises else _infills(windows, asked.infills),
        block=facts.attention_block,
        decoded=lambda done, total: update("fill gaps", done, total),
        behind_clean=behind_clean,
    )  # fmt: skip


@contextmanager
def _loading(path: Path, update: StepProgress) -> Iterator[None]:
    """Show that a model is loaded, which takes a while and reports nothing on its way."""
    update(f"load {path.name}", 0, 0)
    yield
    update(f"load {path.name}", 1, 1)


def _hides(facts: ModelFacts) -> int | Noise | None:
    """What hides tokens of a text: the mask token, or noise; None where nothing does."""
    if facts.canvas is not None:
        return Noise(facts.canvas, facts.vocabulary)
    return facts.mask_token_id


def _refuse(asked: EvaluationOptions, names: Sequence[str], instead: str) -> None:
    """Refuse options of masked losses for a model without mask token."""
    given = [name for name in names if name in asked.model_fields_set]
    if "report" in given and not asked.report:
        given.remove("report")
    if given:
        raise QdcError(
            f"{', '.join(f'--{name}' for name in given)} is about masked tokens, and the model has "
            "no mask token",
            help=f"leave it out: {instead}",
        )


def _blocks(facts: ModelFacts, asked: EvaluationOptions) -> int | None:
    """Tokens of the blocks that are read one by one; None if windows are read as they are."""
    if facts.denoises_blocks:
        return facts.attention_block if asked.hide == "block" else None
    if "hide" in asked.model_fields_set and facts.mask_token_id is not None:
        raise QdcError(
            "--hide is about attention blocks, and a position of this model sees all others",
            help="leave it out",
        )
    return None


def _infills(windows: Tensor, wanted: int) -> int:
    """How many gaps to fill; windows of one token have no place for one."""
    return 0 if windows.shape[1] < 2 else min(wanted, len(windows))


def _add(
    report: CompileReport,
    asked: EvaluationOptions,
    source: TextSource,
    result: Evaluation | Comparison,
) -> None:
    model, against = asked.models[0], asked.against
    found = EvaluationReport(
        text=f"{source.name} sha256:{source.digest}",
        seeds=asked.seeds,
        against=None if against is None else str(against.absolute()),
        result=result,
    )
    if report_of(model).artifact_sha256 != report.artifact_sha256:
        raise QdcError(
            "the artifact was replaced while it was evaluated; its report is left as it is",
            where=[str(model)],
            help="evaluate again",
        )
    write_report(report.model_copy(update={"evaluation": found}), model)
    note_loss(model, tuple(_for_the_card(found)))


def _for_the_card(found: EvaluationReport) -> Iterator[str]:
    """The losses as lines of markdown, for the artifact's own card."""
    compared = found.result if isinstance(found.result, Comparison) else None
    result = found.result.candidate if isinstance(found.result, Comparison) else found.result
    yield (
        f"Masked cross-entropy in nats a token, on {result.windows} windows of {result.length} "
        f"tokens of `{found.text.replace('`', chr(39))}`, {found.seeds} drawings of masks each:"
    )
    yield from ("", "| mask ratio | loss |" + " rise over the base model |" * bool(compared))
    yield "|---|---|" + "---|" * bool(compared)
    rises = [f" {row.rise:+.4f} |" for row in compared.differences] if compared else []
    for at, row in enumerate(result.ratios):
        yield f"| {row.ratio:g} | {row.loss:.4f} |" + (rises[at] if rises else "")
