"""``qdc eval --text``: masked cross-entropy on held-out text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from qdc.cli.evaluation_tables import print_comparison, print_comparisons, print_evaluation
from qdc.cli.models import Opened, open_runnable
from qdc.cli.report import report_of
from qdc.cli.terminal import console, print_json, progress, tell_left_out
from qdc.errors import QdcError
from qdc.evaluation.evaluate import Comparison, Evaluation, compare, evaluate, held_out
from qdc.evaluation.options import EvaluationOptions
from qdc.report.files import write_report
from qdc.report.model import CompileReport, EvaluationReport
from qdc.text.source import TextSource, read_text

PROBE = "def f(x):\n    return x + 1\n"


def evaluate_command(asked: EvaluationOptions, *, as_json: bool, as_markdown: bool = False) -> None:
    """Load models, measure on the same masks, print."""
    assert asked.text is not None, "an evaluation is of text or of tasks"
    report = report_of(asked.models[0]) if asked.report else None
    reference, candidates = split(asked)
    source = read_text(asked.text, asked.text_field)
    tell_left_out(source.name, source.left_out)
    results = list(_results(candidates, reference, source, asked))
    if len(candidates) > 1:
        assert reference is not None
        found = [
            (path, result)
            for path, result in zip(candidates, results, strict=True)
            if isinstance(result, Comparison)
        ]
        if as_json:
            rows = [{"model": str(p), "result": r.model_dump(mode="json")} for p, r in found]
            print_json({"against": str(reference), "models": rows})
        else:
            print_comparisons(console(), reference, found, markdown=as_markdown)
        return
    [result] = results
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif isinstance(result, Comparison):
        print_comparison(console(), result, markdown=as_markdown)
    else:
        print_evaluation(console(), result, markdown=as_markdown)
    if report is not None:
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
) -> Iterator[Evaluation | Comparison]:
    """Measure one candidate after the other: two models at most are in memory."""
    original = None
    for path in candidates:
        candidate = open_runnable(
            path, asked.device, asked.plugins, asked.backend, verify=asked.verify
        )
        if reference is not None:
            original = original or open_runnable(
                reference, asked.device, asked.plugins, verify=asked.verify
            )
            check_alike(candidate, original)
        yield _measure(candidate, original, source, asked, path.name)
        del candidate


def _measure(
    candidate: Opened,
    original: Opened | None,
    source: TextSource,
    asked: EvaluationOptions,
    name: str,
) -> Evaluation | Comparison:
    facts = candidate.facts
    size = facts.max_length if asked.length is None else asked.length
    if size > facts.max_length:
        raise QdcError(
            f"--length {size} is beyond the model's {facts.max_length} tokens",
            help="choose a smaller length",
        )
    windows, owners = held_out(source.documents, candidate.encode, size, asked.windows)
    documents, drawn = len(source.documents), range(asked.seeds)
    with progress() as update:

        def tick(done: int, total: int) -> None:
            update(f"evaluate {name}"[:22], done, total)

        if original is None:
            return evaluate(
                candidate, windows, facts.mask_token_id, asked.ratios, drawn, asked.batch,
                progress=tick, documents=documents, owners=owners,
            )  # fmt: skip
        return compare(
            candidate, original, windows, facts.mask_token_id, asked.ratios, drawn, asked.batch,
            progress=tick, documents=documents, owners=owners,
            infills=_infills(windows, asked.infills), block=facts.attention_block,
            decoded=lambda done, total: update("fill gaps", done, total),
        )  # fmt: skip


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
