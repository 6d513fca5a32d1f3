"""Texts with gaps: filled as ``qdc run`` fills them, and what is refused."""

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
import torch

from qdc.cli.models import Opened
from qdc.errors import QdcError
from qdc.evaluation.infill import GAP, infill, parse_gaps
from qdc.runtime.decoding.fill import fill
from qdc.runtime.decoding.options import DecodeOptions
from tests.serve.conftest import Served

TEXT = "def ___(path):\n    with open(path) as ____:\n        return file.___()"


def ask(served: Served, **body: Any) -> list[dict[str, Any]]:
    """The events of one request."""
    answer = httpx.post(f"{served.url}/fill", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]


def test_gaps_are_filled_as_qdc_run_fills_them(server: Served, opened: Opened) -> None:
    events = ask(server, text=TEXT, gap_tokens=2)
    *states, last = events
    text = TEXT.replace("____", "___").replace("___", GAP)
    mask = opened.facts.mask
    tokens, masked = parse_gaps(text, opened.encode, mask, 2)
    due = infill(opened, tokens, masked, mask)
    assert last["text"] == opened.decode(due[0].tolist())
    pieces = TEXT.replace("____", "___").split("___")
    assert last["text"] == "".join(
        piece + gap for piece, gap in zip(pieces, [*last["gaps"], ""], strict=True)
    )
    opens = [[sum(token is None for token in gap) for gap in state["gaps"]] for state in states]
    assert opens[-1] == [0, 0, 0]
    assert all(sum(now) <= sum(before) for before, now in pairwise(opens))
    given = tokens.numel() - 6
    assert last["usage"] == {
        "prompt_tokens": given, "completion_tokens": 6, "total_tokens": given + 6
    }  # fmt: skip
    assert states[-1]["step"] == states[-1]["steps"] == 6


def test_pieces_may_hold_what_is_a_gap_in_a_text(server: Served) -> None:
    whole = ask(server, text=["a ", "", " = ___"], strategy="threshold", threshold=0.5)[-1]
    assert len(whole["gaps"]) == 2
    assert whole["text"].endswith(" = ___")
    options = {"temperature": 1.0, "steps": 1, "gap_tokens": 4}
    one, two = (ask(server, text="a ___ b", seed=seed, **options)[-1] for seed in (1, 1))
    assert one == two


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"text": "no gap __"}, "text", "write ___ where text is missing"),
        ({"text": ["one piece"]}, "text", "write ___ where"),
        ({"text": "___", "gap_tokens": 0}, "gap_tokens", "greater than or equal to 1"),
        ({"text": "___", "gap_tokens": 1 << 40}, "gap_tokens", "1 gaps of 1099511627776 tokens"),
        ({"text": "x ___ " * 400}, "gap_tokens", "400 gaps of 1 tokens"),
        ({"text": "x " * 300 + "___"}, "text", "with its gaps: the server takes 256"),
        ({"text": "___", "max_tokens": 4}, "max_tokens", "here it is called gap_tokens"),
        ({"text": "___", "strategy": "apd"}, "strategy", "apd needs a verifier"),
        ({"text": "___", "stop_early": False}, "stop_early", "a gap ends nothing"),
        ({"text": "___", "threshold": 0.5}, None, "threshold has no effect on low-confidence"),
        ({"text": "___", "stop": ["x"]}, "stop", "unknown field 'stop'"),
        ({}, "text", "field required"),
    ],
)
def test_what_is_refused(server: Served, body: Any, param: str | None, says: str) -> None:
    answer = httpx.post(f"{server.url}/fill", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in error["message"].lower()
    assert error["param"] == param


def test_a_batch_fills_what_each_text_alone_is_filled_with(opened: Opened) -> None:
    """Of one length, with gaps at different places; sampled, so each draws from its own seed."""
    tokens = opened.encode("def read(path):\n    return open(path).read()")
    gaps = [[n in places for n in range(len(tokens))] for places in ({1, 2, 5}, {0, 7, 8})]
    facts = opened.decoding
    options = DecodeOptions(length=3, strategy="entropy", temperature=0.8, block=4)
    both = fill(opened.module, [tokens, tokens], gaps, options, facts, seeds=[3, 4])
    for row, seed in enumerate((3, 4)):
        alone = fill(opened.module, [tokens], [gaps[row]], options, facts, seeds=[seed])
        assert alone.answers == [both.answers[row]]
        kept = [token for token, open_ in zip(tokens, gaps[row], strict=True) if not open_]
        whole = both.tokens[row]
        assert whole[~torch.tensor(gaps[row])].tolist() == kept
        assert whole[torch.tensor(gaps[row])].tolist() == both.answers[row]


@pytest.mark.parametrize(
    ("gaps", "options", "says"),
    [
        ([[True, False]], {"length": 1, "strategy": "apd"}, "apd writes behind a prompt"),
        ([[True, False]], {"length": 1, "stop_early": False}, "a gap ends nothing"),
        ([[True, False]], {"length": 2}, "found gaps of 1 tokens, and a length of 2"),
        ([[True]], {"length": 1}, "have one length"),
    ],
)
def test_what_cannot_be_filled(opened: Opened, gaps: Any, options: Any, says: str) -> None:
    with pytest.raises(QdcError, match=says):
        fill(opened.module, [[5, 6]], gaps, DecodeOptions(**options), opened.decoding)


def test_what_the_model_offers_has_bounds_and_a_line_for_each_strategy(server: Served) -> None:
    offered = httpx.get(f"{server.url}/v1/models").json()["data"][0]["qdc"]
    assert offered["bounds"]["temperature"] == {"minimum": 0, "maximum": 100}
    assert offered["bounds"]["max_tokens"] == {"minimum": 1, "maximum": offered["max_length"]}
    assert set(offered["strategy_summaries"]) == set(offered["strategies"])
    assert offered["strategy_summaries"]["random"] == "Places in random order"
    assert offered["fill_strategies"] == offered["strategies"], "apd is not offered at all"
