"""``qdc compare``: run the comparison, print its table."""

from itertools import groupby

import typer
from rich.console import Console

from qdc.cli.sheets import Sheet, print_sheet
from qdc.cli.terminal import console, print_json, print_lines
from qdc.comparing.compare import compare_methods
from qdc.comparing.display import display
from qdc.comparing.folder import PAGE
from qdc.comparing.options import CompareOptions
from qdc.comparing.sheet import VARIED, cells, head, notes, varied_cells
from qdc.comparing.table import CompareResult


def compare_command(options: CompareOptions, *, as_json: bool, as_markdown: bool) -> None:
    """Compare and print. Exits with 1 if a method has failed."""
    compared = compare_methods(options, display)
    if as_json:
        print_json(compared.model_dump(mode="json"))
    else:
        print_compared(console(), compared, markdown=as_markdown)
        if not as_markdown:
            print_lines(console(), "", f"page: {options.out / PAGE}")
    if compared.failed:
        raise typer.Exit(1)


def print_compared(to: Console, compared: CompareResult, *, markdown: bool = False) -> None:
    """Print the table of methods, and one of each option that is varied."""
    columns = head(compared)
    rows = [cells(row, compared) for row in compared.rows]
    right = tuple(range(1, len(columns)))
    sheet = Sheet(_title(compared), columns, right, rows, notes(compared))
    print_sheet(to, sheet, markdown=markdown)
    for option, found in groupby(compared.variations, lambda each: each.option):
        varied = [varied_cells(each) for each in found]
        text = "difference: of the second value from the first, paired; below 0 it is better"
        print_lines(to, "")
        print_sheet(
            to,
            Sheet(f"--vary {option}", VARIED, tuple(range(2, len(VARIED))), varied, (text,)),
            markdown=markdown,
        )


def _title(compared: CompareResult) -> str:
    use = compared.held_out_text
    masks = "" if compared.ratio is None else f", {compared.masks} masks each"
    return (
        f"{compared.model}   {len(compared.rows)} methods   {use.windows} windows of {use.length} "
        f"tokens{masks}"
    )
