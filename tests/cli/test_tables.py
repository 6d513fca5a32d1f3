"""The tables, of hand-made results: every figure that they print."""

import io
from collections.abc import Callable

from rich.console import Console

from qdc.cli.compile import print_summary
from qdc.cli.evaluation_tables import print_comparison, print_evaluation
from qdc.cli.terminal import WIDTH
from qdc.evaluation.evaluate import Comparison, Difference, Evaluation, RatioResult
from qdc.frontend.coverage import Covered
from qdc.report.model import CompileReport, LayerReport, PassReport
from tests.conftest import Golden

MIB = 1 << 20


def printed(show: Callable[[Console], None]) -> str:
    """What it writes to a file."""
    file = io.StringIO()
    show(Console(file=file, width=WIDTH, highlight=False, emoji=False))
    return file.getvalue()


def layer(number: int, kind: str, orders: tuple[int, ...], error: float | None) -> LayerReport:
    columns = 128 * len(orders)
    bits = 64 * 128 * sum(orders)
    return LayerReport(
        name=f"blocks.{number}.{kind}",
        kind=f"blocks.*.{kind}",
        rows=64,
        columns=columns,
        codec="multi-binary",
        orders=orders,
        bits_word="sign bits",
        payload_bits=bits,
        nbytes=bits // 8 + 1000 * (number + 1),
        error=error,
    )


def report(**changes: object) -> CompileReport:
    """Two kinds of layers in two blocks; the figures of each differ."""
    layers = (
        layer(0, "q_proj", (2, 2), 0.01),
        layer(0, "ff_out", (1, 2, 3), 0.5),
        layer(1, "q_proj", (2, 2), 0.04),
        layer(1, "ff_out", (2, 2, 2), None),
    )
    kept = {"wte": "embedding", "0.norm": "rms-norm", "1.norm": "rms-norm"}
    fields: dict[str, object] = {
        "out": "out",
        "family": "llada",
        "pipeline": f"stages(calibrate-mcs{{samples=8}},{'sensitivity,' * 8}daq-lower),pack",
        "backend": "reference",
        "device": "cpu",
        "calibration": "embedded sha256:0123456789",
        "plugins": ("my_pass.py sha256:abcdef",),
        "layers": layers,
        "coverage": (
            *(Covered(tensor=x.name, status="quantized", reason="", weights=1) for x in layers),
            *(Covered(tensor=k, status="kept", reason=v, weights=1) for k, v in kept.items()),
        ),
        "passes": (
            PassReport(name="calibrate-mcs", seconds=1.25, peak_bytes=3 * MIB, units=2),
            PassReport(name="pack", seconds=0.5, peak_bytes=5 * MIB, units=4),
        ),
        "remarks": ("passed daq-lower %blocks.0.q_proj error=0.01 [not markup]",),
        "bytes_before": 7_000_000,
        "bytes_after": 2_000_000,
        "tensor_bytes": 1_500_000,
        "layer_forwards": 0.875,
        "seconds": 12.34,
        "dumps": ("out-dumps/01_pack.qdc", "out-dumps/01_pack.txt"),
        **changes,
    }
    return CompileReport.model_validate(fields)


def test_summary_of_a_compile(golden: Golden) -> None:
    golden(printed(lambda to: print_summary(to, report(), timings=True, remarks=True)))


def test_the_name_of_a_text_is_whole_and_its_digest_is_shortened_visibly() -> None:
    name = "d" * 50 + ".jsonl"
    found = report(calibration=f"{name} sha256:{'0123456789abcdef' * 4}")
    text = printed(lambda to: print_summary(to, found, timings=False))
    assert f"{name} sha256:0123456789ab...\n" in text


def test_bits_of_codes_are_called_so() -> None:
    """One layer that is no signs is enough."""
    first, *others = report().layers
    mixed = (first.model_copy(update={"bits_word": "code bits"}), *others)
    text = printed(lambda to: print_summary(to, report(layers=mixed), timings=False))
    assert "sign bits" not in text
    assert "code bits       2 a weight, exactly" in text
    assert "weights  code bits  effective bits" in text


def test_bits_with_the_vocabulary_have_a_line() -> None:
    """Which a budget over everything is about."""
    head = layer(0, "head", (2,), None).model_copy(update={"nbytes": 64 * 128})
    found = report(outside=(head,))
    weights = sum(row.weights for row in (*found.layers, head))
    bits = 8 * sum(row.nbytes for row in (*found.layers, head)) / weights
    assert found.whole_bits == found.as_data()["whole_bits"] == bits
    assert CompileReport.from_data(found.as_data(), "here") == found
    text = printed(lambda to: print_summary(to, found))
    assert f"with vocabulary  {bits:.4f}, embedding and head counted too" in text
    assert "with vocabulary" not in printed(lambda to: print_summary(to, report()))


def test_layers_of_which_little_is_left_are_named() -> None:
    layers = tuple(x.model_copy(update={"error": 0.89}) for x in report().layers)
    assert "lost" not in printed(lambda to: print_summary(to, report(layers=layers)))
    lost = tuple(x.model_copy(update={"error": 0.9}) for x in layers)
    one = printed(lambda to: print_summary(to, report(layers=(*layers[:-1], lost[-1]))))
    assert "1 layers have an output error of 0.9 or more: blocks.1.ff_out" in " ".join(one.split())
    every = " ".join(printed(lambda to: print_summary(to, report(layers=lost))).split())
    assert "4 layers have an output error of 0.9 or more: blocks.0.q_proj, " in every
    assert "and 1 more" in every


def test_summary_without_layers() -> None:
    text = printed(lambda to: print_summary(to, report(layers=(), out=None), timings=False))
    assert "coverage     4 tensors to quantize, 3 kept (1 embedding, 2 rms-norm)" in text
    assert "orders" not in text
    assert "written" not in text


def test_summary_without_orders_or_kept_tensors() -> None:
    plain = tuple(x.model_copy(update={"orders": ()}) for x in report().layers)
    text = printed(lambda to: print_summary(to, report(layers=plain, coverage=())))
    assert "0 kept; all 0 tensors" in text
    assert "orders" not in text


def evaluation(losses: tuple[float, ...], bound: float) -> Evaluation:
    pairs = zip((0.15, 0.5, 0.85), (1500, 5000, 8500), losses, strict=True)
    return Evaluation(
        documents=3,
        windows=40,
        length=250,
        unigram=6.0,
        ratios=tuple(RatioResult(ratio=r, tokens=n, loss=loss) for r, n, loss in pairs),
        bound=bound,
    )


def test_evaluation_of_one_model(golden: Golden) -> None:
    golden(printed(lambda to: print_evaluation(to, evaluation((2.0, 3.25, 5.5), 4.125))))


def test_comparison_of_two_models(golden: Golden) -> None:
    """The last original predicts worse than the frequencies of the tokens: it has no gap."""
    original, candidate = (2.0, 3.25, 6.5), (2.5, 3.0, 6.75)
    found = Comparison(
        candidate=evaluation(candidate, 4.5),
        original=evaluation(original, 4.125),
        differences=(
            Difference(ratio=0.15, rise=0.5, standard_error=0.0123),
            Difference(ratio=0.5, rise=-0.25, standard_error=0.0456),
            Difference(ratio=0.85, rise=0.25, standard_error=0.0789),
        ),
        bound_rise=0.375,
        bound_standard_error=0.0321,
    )
    golden(printed(lambda to: print_comparison(to, found)))
