"""The table: in Markdown, as JSON, with what is to be known of it below."""

from rich.console import Console

from qdc.cli.compare import print_compared
from qdc.comparing.table import CompareResult
from tests.comparing.examples import comparison, failed_row, method_row, variation
from tests.conftest import Golden

ROWS = (
    method_row("default", 0.05, 2.25, nominal_bits=None),
    method_row("odd|name", 0.2, 2.5, notes=("has no option geometry",), source="arXiv 1"),
    failed_row("broken", "error[QDC311] cannot factor\n  help  more damp"),
)
EXAMPLE = comparison(*ROWS, variations=(variation("default", -0.05), variation("odd|name", 0.01)))


def printed(compared: CompareResult, *, markdown: bool) -> str:
    console = Console(width=100, highlight=False, soft_wrap=False)
    with console.capture() as caught:
        print_compared(console, compared, markdown=markdown)
    return caught.get()


def test_markdown(golden: Golden) -> None:
    golden(printed(EXAMPLE, markdown=True))


def test_text_folds_nothing() -> None:
    lines = printed(EXAMPLE, markdown=False).splitlines()
    [row] = [line for line in lines if line.startswith("default ") and "2.250" in line]
    assert "+0.0500 (+0.0450 .. +0.0575) ± 0.0025" in row
    assert any(line.startswith("broken failed: error[QDC311]") for line in lines)


def test_next_token_losses_have_one_column() -> None:
    rise = ROWS[0].rises[1].model_copy(update={"ratio": None})
    row = ROWS[0].model_copy(update={"rises": (rise,)})
    loss = EXAMPLE.original[1].model_copy(update={"ratio": None})
    text = printed(comparison(row, ratio=None, original=(loss,)), markdown=True)
    assert "rise of the next-token loss |" in text
    assert "mask ratio" not in text.partition("original:")[0]


def test_json_can_be_read_back() -> None:
    assert CompareResult.model_validate_json(EXAMPLE.model_dump_json()) == EXAMPLE
    schema = CompareResult.model_json_schema()
    assert {"rows", "original", "variations", "schema_version"} <= set(schema["properties"])
    row = schema["$defs"]["MethodRow"]["properties"]
    assert {"nominal_bits", "code_bits", "effective_bits", "file_bytes", "rises", "top1",
            "divergence", "seconds", "processor_seconds", "peak_bytes",
            "error"} <= set(row)  # fmt: skip
