"""``qdc eval --tasks``, several artifacts, markdown, and options of the wrong kind."""

import json
import sys
from pathlib import Path

import pytest

from qdc.errors import QdcError
from qdc.evaluation.options import as_decoding
from tests.cli.conftest import Command
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.commands import qdc as command
from tests.support.compiles import compile_tiny

INCLUDE = EMBEDDED.parent / "tasks"
SHORT = ("--windows", 3, "--length", 8, "--seeds", 1, "--ratios", "0.5", "--infills", 2)
FEW = ("--include", INCLUDE, "--limit", 3, "--mc-num", 2)


@pytest.fixture(scope="module")
def rounded(model: Path) -> Path:
    """The model, rounded to nearest: other weights, the same tokens."""
    compile_tiny(model, model.with_name("rounded"), "rtn-lower,pack")
    return model.with_name("rounded")


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and of those that it starts."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.mark.slow
def test_tasks_of_two_models_in_a_process_of_their_own(model: Path, rounded: Path) -> None:
    """Offline, quiet, and every document paired."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    found = command(
        "eval", rounded, "--tasks", "python_choice,python_write", *FEW, "--against", model,
        "--generate", "length=4,steps=2", "--json",
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
    data = json.loads(found.stdout)
    assert data["candidate"]["scorer"] == data["original"]["scorer"] == "llada"
    names = [(each["task"], each["metric"], each["documents"]) for each in data["differences"]]
    assert names == [
        ("python_choice", "acc", 3), ("python_choice", "acc_norm", 3),
        ("python_write", "exact_match", 3),
    ]  # fmt: skip
    for each in data["differences"]:
        assert each["difference"] == pytest.approx(each["candidate"] - each["original"])
        low, high = each["interval"]
        assert low <= each["difference"] <= high


def test_tasks_print_tables(model: Path, qdc: Command, refused: Command) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    one = qdc("eval", model, "--tasks", "python_choice", *FEW, "--scorer", "dream")
    assert "likelihoods: dream, 2 masks each, seed 1234" in one
    decoding = ("--generate", "length=2,strategy=random")
    written = qdc("eval", model, "--tasks", "python_write", *FEW[:4], *decoding)
    assert "decoding: length=2, strategy=random" in written
    assert "likelihoods" not in written
    in_vain = refused("eval", model, "--tasks", "python_choice", *FEW, *decoding)
    assert "none of the tasks has the model write" in in_vain
    table = qdc("eval", model, model, "--tasks", "python_choice", *FEW, "--markdown")
    rows = [line for line in table.splitlines() if line.startswith("| python_choice")]
    assert [row.split(" | ")[1] for row in rows] == ["acc", "acc_norm"]
    assert all("+0.0000 | 0.0000 | +0.000 .. +0.000 | 0 : 0 | 1.000 |" in row for row in rows)


def test_tasks_are_answered_by_a_strategy_of_a_plugin(
    model: Path, qdc: Command, refused: Command, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    file = tmp_path / "mine.py"
    file.write_text(
        "from qdc.runtime.decoding.llada import Threshold\n"
        "class Mine(Threshold):\n"
        "    name = 'mine'\n"
        "    first: int = 1\n"
        "    some: tuple[int, ...] = (2,)\n"
    )
    tasks = ("eval", model, "--tasks", "python_write", *FEW[:4], "--plugin", file, "--generate")
    found = qdc(*tasks, "length=2,strategy=mine{first=3 some=4,5},block=2", "--json")
    assert json.loads(found)["decoding"]["strategy"] == "mine{first=3 some=4,5}"
    assert "no strategy is called 'mien'" in refused(*tasks, "length=2,strategy=mien")
    unread = refused(*tasks, "length=2,strategy=mine,steps=2")
    assert "steps has no effect on mine; it is read by" in unread


def test_options_of_likelihoods_are_refused_where_none_is_asked_for(
    model: Path, refused: Command
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    found = refused("eval", model, "--tasks", "python_write", *FEW, "--cfg", 1)
    assert "--mc-num, --cfg changes nothing: none of the tasks asks for a likelihood" in found


def test_several_artifacts_are_one_table(
    model: Path, artifact: Path, rounded: Path, text: Path, qdc: Command
) -> None:
    data = json.loads(
        qdc("eval", artifact, rounded, "--against", model, "--text", text, *SHORT, "--json")
    )
    assert data["against"] == str(model)
    assert [each["model"] for each in data["models"]] == [str(artifact), str(rounded)]
    alone = json.loads(qdc("eval", rounded, "--against", model, "--text", text, *SHORT, "--json"))
    assert data["models"][1]["result"] == alone
    first = json.loads(qdc("eval", model, rounded, "--text", text, *SHORT, "--json"))
    assert first == alone
    table = qdc("eval", artifact, rounded, "--against", model, "--text", text, *SHORT, "--markdown")
    rows = [line for line in table.splitlines() if line.startswith(f"| {rounded} | 0.5")]
    assert len(rows) == 1
    assert f"{alone['differences'][0]['rise']:+.4f}" in rows[0]
    assert f"{alone['agreements'][0]['top1']:.1%}" in rows[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "neither of '--text' and '--tasks'"),
        (("--tasks", "a", "--text", "TEXT"), "both of '--text' and '--tasks'"),
        (("--tasks", "a", "--windows", 3, "--report"), "--windows, --report changes nothing"),
        (("--text", "TEXT", "--mc-num", 3), "--mc-num changes nothing with --text"),
        (("--tasks", "a", "--limit", 0), "--limit 0 is too small"),
        (("--tasks", "a", "--mc-num", 0), "--mc-num: "),
        (("--tasks", "a", "--scorer", "gpt"), "scorer"),
        (("--tasks", "a", "--generate", "length"), "is no list of options"),
        (("--tasks", "a", "--generate", "size=3"), "size"),
        (("--tasks", "a", "--include", "none"), "no such folder of tasks"),
        (("--text", "TEXT", "--batch", 0), "--batch 0 runs nothing"),
        (("MODEL", "--text", "TEXT", "--infills", -1), "--infills -1 is no count"),
        (("--text", "TEXT", "--infills", 3), "--infills changes nothing with one model"),
        (("--text", "TEXT", "--json", "--markdown"), "exclude each other"),
        (("MODEL", "--text", "TEXT", "--report"), "--report adds the figures of one artifact"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    words: tuple[object, ...], said: str, model: Path, text: Path, refused: Command
) -> None:
    named = {"TEXT": text, "MODEL": model}
    assert said in refused("eval", model, *(named.get(str(word), word) for word in words))


def test_models_that_are_not_alike_are_not_paired(
    model: Path, tmp_path: Path, refused: Command
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    other = write_checkpoint(tmp_path / "other", d_model=32, mlp_hidden_size=32, max_length=48)
    message = refused("eval", other, "--tasks", "python_choice", *FEW, "--against", model)
    assert "do not share" in message


def test_decoding_options_are_checked_at_once() -> None:
    found = as_decoding("top-p=0.9, temperature=1")
    assert found.model_dump(exclude_unset=True) == {"top_p": 0.9, "temperature": 1}
    with pytest.raises(QdcError, match="is no list of options"):
        as_decoding("length=")
    with pytest.raises(QdcError, match="no option is called 'lenght'; did you mean length"):
        as_decoding("lenght=8")
