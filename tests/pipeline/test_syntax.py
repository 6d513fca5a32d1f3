"""Pipeline text: what parses, and where the caret points when it does not."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdc.errors import InvalidPipeline
from qdc.pipeline.passbase import option_text
from qdc.pipeline.syntax import Item, StagesItem, caret, is_name, parse, parse_item


def refusal(text: str) -> InvalidPipeline:
    with pytest.raises(InvalidPipeline) as caught:
        parse(text)
    return caught.value


def caret_column(error: InvalidPipeline) -> int:
    _, text, mark = error.help.split("\n")
    assert mark.strip() == "^"
    assert text.startswith(" " * 8)
    return len(mark) - 1 - 8


def test_items_keep_names_options_and_places() -> None:
    assert parse("a, stages( b{x=1 y-z=a,b},c ),d{}") == (
        Item("a", 0),
        StagesItem(3, (Item("b", 11, {"x": "1", "y-z": ("a", "b")}), Item("c", 26))),
        Item("d", 30),
    )


def test_a_group_may_have_options() -> None:
    assert parse("stages{order=x y=1,2} (a,b{z=3})") == (
        StagesItem(0, (Item("a", 23), Item("b", 25, {"z": "3"})), {"order": "x", "y": ("1", "2")}),
    )
    assert parse("stages{x=1}") == (Item("stages", 0, {"x": "1"}),)


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 0, "expected a pass name"),
        ("a,", 2, "expected a pass name"),
        ("a,,b", 2, "expected a pass name"),
        ("a b", 2, "expected ',' or the end"),
        ("a}", 1, "expected ',' or the end"),
        ("a{x}", 3, "expected '='"),
        ("a{x=}", 4, "expected a value"),
        ("a{x=1,}", 6, "expected a value"),
        ("a{x=1", 5, "expected an option name or '}'"),
        ('a{x="1}', 4, "expected a value"),
        ("a{x=1 x=2}", 6, "option x is given twice"),
        ("stages(a", 8, "expected ',' or ')'"),
        ("stages()", 7, "expected a pass name"),
        ("stages{x}(a)", 8, "expected '='"),
        ("stages{x=1}(a", 13, "expected ',' or ')'"),
        ("stages(stages{x=1}(a))", 7, "stages(...) cannot be nested"),
        ("a,stages(b,stages(c))", 11, "stages(...) cannot be nested"),
        ("a\n\tb", 3, "expected ',' or the end"),
    ],
)
def test_the_caret_points_at_the_mistake(text: str, column: int, what: str) -> None:
    error = refusal(text)
    assert error.what == f"the pipeline does not parse: {what}"
    assert caret_column(error) == column


def test_deep_nesting_is_refused_at_the_second_level() -> None:
    assert caret_column(refusal("stages(" * 50_000)) == 7


def test_a_caret_stays_below_its_letter_across_white_space() -> None:
    assert caret("a\n b", 3) == "\n        a  b\n           ^"


def test_quoted_values_hold_what_the_grammar_uses() -> None:
    (item,) = parse(r'a{x="b,c {d}" y="say \"hi\" \\ there"}')
    assert item == Item("a", 0, {"x": "b,c {d}", "y": r'say "hi" \ there'})


def test_the_word_stages_alone_is_a_name() -> None:
    assert parse("stages,stages-2") == (Item("stages", 0), Item("stages-2", 7))


def test_a_backend_is_one_item() -> None:
    assert parse_item(" reference{a=1} ") == Item("reference", 1, {"a": "1"})
    for text in ("a,b", "stages(a)", ""):
        with pytest.raises(InvalidPipeline, match="does not parse"):
            parse_item(text)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(InvalidPipeline):
        parse(text)
        return
    assert 0 <= caret_column(refusal(text)) <= len(text)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=3))
def test_every_text_survives_as_an_option(values: list[str]) -> None:
    (item,) = parse(f"a{{x={option_text(tuple(values))}}}")
    assert isinstance(item, Item)
    assert item.options["x"] == (values[0] if len(values) == 1 else tuple(values))


@given(st.text(alphabet="aZ0-_ .{", max_size=5))
def test_a_name_is_what_parses_as_one(text: str) -> None:
    try:
        alone = parse(text) == (Item(text, 0),)
    except InvalidPipeline:
        alone = False
    assert is_name(text) == alone
