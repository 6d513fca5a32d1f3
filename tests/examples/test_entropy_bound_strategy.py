"""The example strategy decides what it says, through ``--plugin`` and as an installed package."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qdc.cli import run
from qdc.cli.models import Opened, open_runnable
from qdc.errors import QdcError
from qdc.pipeline.strategybase import Stepwise
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Decoded
from tests.serve.conftest import running
from tests.support.checkpoints import EMBEDDED
from tests.support.commands import qdc as command
from tests.support.decoding import places

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "entropy_bound_strategy.py"
BOUND = runpy.run_path(str(EXAMPLE))["EntropyBound"]
PROMPTS = ("def read(path):", "import os\nfor name in ")


@pytest.fixture(scope="module")
def opened() -> Opened:
    return open_runnable(EMBEDDED, "cpu", [EXAMPLE])


def written(opened: Opened, *prompts: str, **fields: object) -> Decoded:
    options = DecodeOptions.model_validate(
        {"length": 16, "strategy": "entropy-bound{bound=3}", **fields}
    )
    tokens = [opened.encode(prompt) for prompt in prompts]
    return decode(opened.module, tokens, options, opened.decoding, strategies=opened.strategies)


def taken(entropies: list[list[float]], bound: float) -> list[list[int]]:
    """Columns that a step takes of rows with these entropies; negative ones are not open."""
    strategy = BOUND(bound=bound)
    assert isinstance(strategy, Stepwise)
    given = torch.tensor(entropies, dtype=torch.float64)
    confidence = torch.where(given < 0, -torch.inf, -given)
    chosen = strategy.choose(confidence, given >= 0, None)
    return [row.nonzero()[:, 0].tolist() for row in chosen]


def test_the_surest_are_taken_until_their_sum_passes_the_bound() -> None:
    row = [0.4, -1.0, 0.1, 0.3, 0.2]
    assert taken([row], 0.0) == [[2]]
    assert taken([row], 0.1) == [[2, 4]]
    assert taken([row], 0.35) == [[2, 3, 4]]
    assert taken([row], 0.7) == [[0, 2, 3, 4]]
    assert taken([[2.0, 1.5]], 0.1) == [[1]], "the surest is taken however doubtful"
    assert taken([[0.0, 0.0, 5.0]], 0.0) == [[0, 1, 2]], "what is certain costs nothing"
    assert taken([[-1.0, -1.0], [0.5, 0.6]], 0.1) == [[], [0]], "a row that is done stays so"


def test_confidence_is_the_negative_entropy_and_tokens_are_lladas() -> None:
    chances = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], dtype=torch.float64)
    found = BOUND().propose(chances.log(), places(2))
    assert found.tokens.tolist() == [0, 0]
    due = torch.tensor([-1.5, 0.0], dtype=torch.float64) * torch.log(torch.tensor(2.0)).double()
    torch.testing.assert_close(found.confidence, due, atol=1e-6, rtol=0)


def test_a_larger_bound_takes_fewer_steps(opened: Opened) -> None:
    steps = [
        written(opened, PROMPTS[0], strategy=f"entropy-bound{{bound={bound}}}").steps
        for bound in (0, 3, 1e9)
    ]
    assert steps[0] > steps[1] > steps[2] == 1


def test_answers_follow_from_the_seed_and_not_from_the_company(opened: Opened) -> None:
    drawn = {"temperature": 0.9, "block": 8}
    together = written(opened, *PROMPTS, seed=4, **drawn)
    alone = [written(opened, prompt, seed=4, **drawn).answers[0] for prompt in PROMPTS]
    assert together.answers == alone
    assert written(opened, *PROMPTS, seed=5, **drawn).answers != together.answers


def test_options_that_it_does_not_read_are_refused(opened: Opened) -> None:
    with pytest.raises(QdcError) as caught:
        written(opened, PROMPTS[0], steps=4)
    assert caught.value.where[0].startswith("steps has no effect on entropy-bound; it is read by")
    assert "entropy-bound" not in caught.value.where[0].partition(";")[2]


def test_runs_through_plugin_on_the_command_line(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        ["generate", str(EMBEDDED), PROMPTS[0], "--length", "16", "--plugin", str(EXAMPLE),
         "--strategy", "entropy-bound{bound=3}", "--json"]
    )  # fmt: skip
    assert code == 0
    answer, due = json.loads(capsys.readouterr().out), written(opened, PROMPTS[0])
    assert (answer["tokens"], answer["steps"]) == (due.answers[0], due.steps)


def test_runs_as_an_installed_entry_point(tmp_path: Path) -> None:
    (tmp_path / "bound-1.0.dist-info").mkdir()
    (tmp_path / "entropy_bounds.py").write_bytes(EXAMPLE.read_bytes())
    (tmp_path / "bound-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: bound\nVersion: 1.0\n"
    )
    (tmp_path / "bound-1.0.dist-info" / "entry_points.txt").write_text(
        "[qdc.strategies]\nentropy-bound = entropy_bounds:EntropyBound\n"
    )
    listed = json.loads(command("strategies", "--json", paths=(tmp_path,)).stdout)["strategies"]
    assert listed[-1]["name"] == "entropy-bound"
    assert listed[-1]["origin"] == "entropy_bounds:EntropyBound"
    assert [option["name"] for option in listed[-1]["options"]] == ["bound"]


@pytest.fixture
def served(opened: Opened) -> Iterator[str]:
    with running(EMBEDDED, "--plugin", EXAMPLE) as server:
        yield server.url


def test_is_served(served: str, opened: Opened) -> None:
    import httpx

    facts = httpx.get(f"{served}/v1/models").json()["data"][0]["qdc"]
    assert facts["strategies"][-1] == "entropy-bound"
    assert "apd" not in facts["strategies"]
    assert facts["strategy_options"]["entropy-bound"][0] == "block"
    body = {
        "model": EMBEDDED.name, "prompt": PROMPTS[0], "max_tokens": 16,
        "strategy": "entropy-bound{bound=3}",
    }  # fmt: skip
    answer = httpx.post(f"{served}/v1/completions", json=body, timeout=60).json()
    due = written(opened, PROMPTS[0]).answers[0]
    assert answer["choices"][0]["text"] == opened.decode(due)
    refused = httpx.post(f"{served}/v1/completions", json={**body, "steps": 2})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("steps has no effect on entropy-bound;")
