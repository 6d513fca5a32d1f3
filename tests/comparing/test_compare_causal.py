"""``qdc compare`` on a model without mask token: clean samples, the next token, no masks."""

import json
from pathlib import Path

import pytest

from qdc.cli import run
from tests.e2e.test_causal import write_causal

METHODS = "default,release,best"
SHORT = ["--samples=4", "--length=16", "--windows=8", "--held-length=16"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("causal") / "model"
    write_causal(folder, "llama")
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--masks", "1"], "--masks is about masked tokens"),
        (["--ratios", "0.5", "--masks", "1"], "--ratios, --masks is about masked tokens"),
        (["--vary", "geometry=clean,mcs", "--geometry", "clean"], "--vary and --geometry both"),
        (["--geometry", "cleen"], "--geometry cleen: no method can be run with it"),
    ],
)
def test_what_would_be_ignored_is_refused(
    causal: Path, held_out: Path, tmp_path: Path, given: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = ["compare", str(causal), "--methods", METHODS, *SHORT, "--text", str(held_out)]
    assert run([*asked, "--out", str(tmp_path / "out"), *given]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_draws_masks_says_how_not_to(
    causal: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare", str(causal), "--methods", "gptq", *SHORT, "--text", str(held_out)]
    assert run([*asked, "--out", str(tmp_path / "out"), "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert "--geometry clean" in row["error"]


@pytest.mark.slow
def test_presets_are_compared_on_clean_samples(
    causal: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare", str(causal), "--methods", METHODS, *SHORT, "--text", str(held_out)]
    assert run([*asked, "--out", str(tmp_path / "out"), "--geometry", "clean", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    for name in ("default", "best", "release"):
        [rise] = rows[name]["rises"]
        assert rise["ratio"] is None
        assert rise["interval"] is not None
    assert any("without prefix=0.25" in note for note in rows["release"]["notes"])
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert "mask ratio" not in page
