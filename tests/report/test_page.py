"""The page: it shows every figure, asks for nothing, and takes no text for markup."""

import re
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pytest

from qdc.evaluation.evaluate import Comparison, Difference, Evaluation, RatioResult
from qdc.report.model import CompileReport, EvaluationReport, LayerReport
from qdc.report.page import render

HOSTILE = (
    "<script>alert('1')</script><img src=http://x.test/a.png>\"' onload=1 $\\frac{}$ {{ 7*7 }}"
)
RATIOS = (0.5, 0.15, 0.85)


class Reader(HTMLParser):
    """Collect tags, references and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "xlink:href", "src", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def layer(number: int, kind: str, blocks: int, error: float) -> LayerReport:
    return LayerReport(
        name=f"blocks.{number}.{kind}",
        kind=f"blocks.*.{kind}",
        rows=64,
        columns=128 * blocks,
        codec="multi-binary",
        orders=tuple(1 + (number + place) % 3 for place in range(blocks)),
        bits_word="sign bits",
        payload_bits=64 * 128 * 2 * blocks,
        nbytes=64 * 40 * blocks,
        error=error,
        block_errors=(error / blocks,) * blocks,
    )


def evaluated(compared: bool) -> EvaluationReport:
    def figures(offset: float) -> Evaluation:
        return Evaluation(
            documents=2, windows=1, length=32, unigram=6.0, bound=4.25 + offset,
            ratios=tuple(RatioResult(ratio=r, tokens=99, loss=3 + r + offset) for r in RATIOS),
        )  # fmt: skip

    result: Comparison | Evaluation = figures(0.5)
    if compared:
        result = Comparison(
            candidate=figures(0.5),
            original=figures(0.0),
            differences=tuple(Difference(ratio=r, rise=0.5, standard_error=0.0125) for r in RATIOS),
            bound_rise=0.5,
            bound_standard_error=0.03,
        )
    return EvaluationReport(text="held sha256:abc", seeds=1, against="orig", result=result)


def changed(original: CompileReport, **changes: object) -> str:
    return render(original.model_copy(update=changes))


def test_it_shows_every_layer_pass_option_part_and_remark(compiled: CompileReport) -> None:
    text = Reader(render(compiled)).text
    for layer in compiled.layers:
        assert layer.name in text
        assert f"{layer.effective_bits:.4f}" in text
    for row in compiled.passes:
        assert f"{row.seconds:.2f}" in text
        assert all(f"{key}={value}" in text for key, value in row.options.items())
    for part in compiled.parts:
        assert f"{part.name} {part.nbytes:,} " in text
    for digest in (compiled.checkpoint_sha256, compiled.artifact_sha256, compiled.calibration):
        assert digest
        assert digest in text
    assert all(remark in text for remark in compiled.remarks)
    assert all(row.tensor in text for row in compiled.coverage)
    assert all(value in text for value in compiled.environment.values())
    assert "Sign bits a weight 2 exactly" in text
    stored = sum(layer.nbytes for layer in compiled.layers)
    weights = sum(layer.weights for layer in compiled.layers)
    assert f"{stored:,} bytes × 8 ÷ {weights:,} weights = {8 * stored / weights:.4f}." in text
    assert "qdc eval out --text HELD_OUT --against MODEL --report" in text


def test_bits_of_codes_are_called_so(compiled: CompileReport) -> None:
    assert compiled.bits_word == "sign bits"
    codes = tuple(x.model_copy(update={"bits_word": "code bits"}) for x in compiled.layers)
    text = Reader(changed(compiled, layers=codes)).text
    assert "Code bits a weight 2 exactly" in text
    assert "Code bits count codes alone" in text
    assert "sign bits" not in text.replace("one sign bit a weight each", "")


def test_orders_have_a_column_where_there_are_any(compiled: CompileReport) -> None:
    plain = tuple(layer.model_copy(update={"orders": ()}) for layer in compiled.layers)
    column = "<th>orders</th>"
    assert column in render(compiled)
    assert column not in render(compiled.model_copy(update={"layers": plain}))


def test_bits_with_the_vocabulary_are_shown(compiled: CompileReport) -> None:
    head = compiled.layers[0].model_copy(update={"nbytes": compiled.layers[0].weights})
    found = compiled.model_copy(update={"outside": (head,)})
    assert f"{found.whole_bits:.4f} with embedding and head" in render(found)
    assert "with embedding and head" not in render(compiled)


def test_bits_of_what_the_file_holds_in_full_are_called_those_of_the_packed_form(
    compiled: CompileReport,
) -> None:
    found = render(compiled.model_copy(update={"decoded": 7}))
    assert "as packed: of 7 matrices the file holds weights in full" in found
    assert "scales, tags and padding counted" not in found
    assert "as packed" not in render(compiled)


def test_it_says_how_many_layers_read_rotated_inputs(compiled: CompileReport) -> None:
    assert "rotated inputs" not in render(compiled)
    first, *others = compiled.layers
    some = compiled.model_copy(
        update={"layers": (first.model_copy(update={"rotated": True}), *others)}
    )
    assert f"1 of {len(compiled.layers)} layers read rotated inputs" in render(some)


def test_it_says_whether_the_bytes_are_those_predicted(compiled: CompileReport) -> None:
    assert render(compiled).count('class="check yes"') == 2
    wrong = changed(compiled, predicted_bytes=compiled.tensor_bytes + 1)
    assert wrong.count('class="check yes"') == wrong.count('class="check no"') == 1


def test_it_asks_for_nothing_and_runs_nothing(compiled: CompileReport) -> None:
    page = changed(compiled, evaluation=evaluated(compared=True))
    found = Reader(page)
    assert set(found.tags) & {"script", "iframe", "object", "embed", "base", "form"} == set()
    assert found.handlers == []
    assert all(ref.startswith(("#", "data:")) for ref in found.references)
    assert len([ref for ref in found.references if ref.startswith("data:image/png")]) >= 14
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_names_are_text_wherever_they_appear(compiled: CompileReport) -> None:
    one = compiled.layers[0].model_copy(update={"name": HOSTILE, "kind": HOSTILE, "codec": HOSTILE})
    fate = compiled.coverage[0].model_copy(update={"tensor": HOSTILE, "reason": HOSTILE})
    step = compiled.passes[0].model_copy(
        update={"name": HOSTILE, "options": {HOSTILE: HOSTILE}, "changed": (HOSTILE,)}
    )
    held = evaluated(compared=True).model_copy(update={"text": HOSTILE, "against": HOSTILE})
    page = changed(
        compiled, out=f"/{HOSTILE.replace('/', '')}", family=HOSTILE, device=HOSTILE,
        pipeline=HOSTILE, full_pipeline=HOSTILE, backend=HOSTILE, calibration=HOSTILE,
        checkpoint=HOSTILE, plugins=(HOSTILE,), remarks=(HOSTILE,), dumps=(HOSTILE,),
        environment={HOSTILE: HOSTILE}, layers=(one, *compiled.layers[1:]), outside=(one,),
        coverage=(fate,), passes=(step,), evaluation=held,
        files=(compiled.files[0].model_copy(update={"name": HOSTILE}),),
        parts=(compiled.parts[0].model_copy(update={"name": HOSTILE}),),
    )  # fmt: skip
    found = Reader(page)
    assert set(found.tags) & {"script", "img"} == set()
    assert found.handlers == []
    assert all(ref.startswith(("#", "data:")) for ref in found.references)
    assert found.text.count(HOSTILE) >= 25
    assert "49" not in re.findall(r"onload=1 .{1,40}", found.text)[0]


def test_the_same_report_gives_the_same_page(compiled: CompileReport) -> None:
    assert render(compiled) == render(compiled)


def test_drawings_keep_their_identifiers_apart(compiled: CompileReport) -> None:
    page = changed(compiled, evaluation=evaluated(compared=True))
    clips = re.findall(r'<clipPath id="(\w+)"', page)
    assert len(clips) > 10
    # two drawings may share one if they are equal: then it is the same rectangle
    rectangles = re.findall(r'<clipPath id="(\w+)">\s*<rect ([^>]*)/>', page)
    assert len(set(rectangles)) == len(set(clips))
    assert set(re.findall(r"url\(#(\w+)\)", page)) <= set(clips)


def test_one_order_everywhere_is_said_in_a_line(compiled: CompileReport) -> None:
    plain = tuple(x.model_copy(update={"orders": (2,) * len(x.orders)}) for x in compiled.layers)
    text = Reader(changed(compiled, layers=plain)).text
    assert re.search(r"All \d+ blocks have order 2\.", text)


@pytest.mark.parametrize("compared", [True, False])
def test_loss_by_mask_ratio_is_shown(compiled: CompileReport, compared: bool) -> None:
    text = Reader(changed(compiled, evaluation=evaluated(compared=compared))).text
    assert "--report" not in text
    assert "1 window of 32 tokens, 1 drawing of masks each" in text
    assert "0.5 99 4.0000" in text
    assert "bound 4.7500" in text
    assert ("+0.5000 0.0125" in text) == ("compiled original" in text) == compared


def test_errors_of_zero_and_below_are_drawn(compiled: CompileReport) -> None:
    exact = compiled.layers[0].model_copy(update={"error": 0.0, "block_errors": (0.0,)})
    below = compiled.layers[-1].model_copy(update={"error": 0.1, "block_errors": (0.3, -0.2, 0.0)})
    assert 'id="error"' in changed(compiled, layers=(exact, below))
    assert 'id="error"' not in changed(compiled, layers=(exact,))


def test_a_model_of_224_layers_stays_small(compiled: CompileReport) -> None:
    kinds = {"q": 32, "k": 32, "v": 32, "o": 32, "ff": 32, "up": 32, "down": 96}
    layers = tuple(layer(n, k, b, 0.01 * (n + 1)) for n in range(32) for k, b in kinds.items())
    page = changed(compiled, layers=layers)
    assert len(page) < 1_500_000
    assert page.count("<figcaption>") == 3 * len(kinds)


def test_many_kinds_share_one_drawing(compiled: CompileReport) -> None:
    layers = tuple(layer(0, f"kind{n}", 1 + n % 3, 0.1) for n in range(40))
    page = changed(compiled, layers=layers)
    assert page.count("<figcaption>") == 3
    assert "all layers" in page


def test_a_report_without_an_artifact_can_be_rendered(compiled: CompileReport) -> None:
    page = changed(compiled, out=None, report=None, layers=(), parts=(), files=(), passes=())
    text = Reader(page).text
    assert "No artifact was written" in text
    assert 'id="bits"' not in page


def test_the_users_own_settings_change_nothing(
    compiled: CompileReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = render(compiled)
    settings: Any = matplotlib.rcParams
    for key, value in (("text.usetex", True), ("axes.grid", True), ("axes.linewidth", 9.0)):
        monkeypatch.setitem(settings, key, value)
    assert render(compiled) == expected
    assert matplotlib.rcParams["axes.linewidth"] == 9.0
