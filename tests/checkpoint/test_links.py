"""Links out of a model's folder are refused, wherever its files are read or copied."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qdc
from qdc.checkpoint.folder import Checkpoint
from qdc.checkpoint.layout import INDEX, SINGLE
from qdc.errors import InvalidArtifact, InvalidCheckpoint, QdcError
from qdc.modelfiles import read_inside
from qdc.text.tokenizer import load_tokenizer
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny

SECRET = "-----BEGIN PRIVATE KEY-----"
JSON = ("special_tokens_map.json", "generation_config.json", "tokenizer_config.json")
COPIED = (*JSON, "tokenizer.json", "chat_template.jinja")
OUT = "it is a link to a file outside the model's folder"
CHEAP = "rtn-lower,pack"
TINY: dict[str, Any] = {"d_model": 32, "mlp_hidden_size": 32, "n_layers": 1}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "model", **TINY)
    (folder / "special_tokens_map.json").write_text('{"mask_token": "<mask>"}')
    (folder / "generation_config.json").write_text('{"top_k": 3}')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


def lead_out(folder: Path, name: str) -> Path:
    """Put the file elsewhere, and in its place a link to it."""
    elsewhere = folder.parent / "home" / f"secret-{name}"
    elsewhere.parent.mkdir(exist_ok=True)
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    return elsewhere


def cache_of(folder: Path, place: Path) -> Path:
    """The same files as the hub's cache has them; returns the snapshot."""
    snapshot = place / "models--org--name" / "snapshots" / "0abc"
    blobs = place / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    return snapshot


@pytest.mark.parametrize("name", [*COPIED, "config.json", SINGLE])
def test_a_compile_copies_nothing_from_outside(name: str, model: Path, tmp_path: Path) -> None:
    lead_out(model, name)
    with pytest.raises(QdcError) as caught:
        compile_tiny(model, tmp_path / "out", CHEAP)
    assert OUT in caught.value.what
    assert "put a copy of the file in its place" in caught.value.help
    assert caught.value.where == (str(model / name),)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


@pytest.mark.parametrize(
    "name", [*COPIED, "config.json", INDEX, "model-00001-of-00002.safetensors"]
)
def test_an_export_copies_nothing_from_outside(name: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compile_tiny(model, out, CHEAP)
    lead_out(out, name)
    with pytest.raises(QdcError, match=OUT):
        qdc.export(out, out=tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize("name", [INDEX, "model-00001-of-00002.safetensors"])
def test_shards_and_their_index_lead_nowhere_else(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", **TINY, shards=2)
    Checkpoint(folder)
    lead_out(folder, name)
    with pytest.raises(InvalidCheckpoint, match=OUT):
        Checkpoint(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_tokenizer_is_not_read_from_outside(name: str, model: Path) -> None:
    load_tokenizer(model)
    lead_out(model, name)
    with pytest.raises(InvalidCheckpoint, match=OUT):
        load_tokenizer(model)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_byte_pairs_are_not_read_from_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    files = {
        "vocab.json": json.dumps({"a": 0, "b": 1, "ab": 2}),
        "merges.txt": "#version: 0.2\na b\n",
        "tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}',
    }
    for each, text in files.items():
        (tmp_path / "model" / each).write_text(text)
    assert load_tokenizer(tmp_path / "model").encode("ab") == [2]
    lead_out(tmp_path / "model", name)
    with pytest.raises(InvalidCheckpoint, match=OUT):
        load_tokenizer(tmp_path / "model")


def test_a_cache_of_the_hub_is_followed(model: Path, tmp_path: Path) -> None:
    snapshot = cache_of(model, tmp_path / "hub")
    (tmp_path / "short").symlink_to(snapshot)  # the folder itself may be a link
    for number, folder in enumerate((model, snapshot, tmp_path / "short")):
        compile_tiny(folder, tmp_path / f"out{number}", CHEAP)
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / f"out{n}").iterdir()}
        for n in range(3)
    )
    assert one == two == three
    assert {*COPIED} <= one.keys()


def hostile_blobs(snapshot: Path, secret: Path) -> Iterator[Path]:
    """Links of a cache that lead elsewhere, one after the other at the same place."""
    link, blobs = snapshot / "tokenizer.json", snapshot.parent.parent / "blobs"
    other = blobs.parent.with_name("models--other") / "blobs"
    other.mkdir(parents=True)
    shutil.copy(secret, other / "x")
    for target in (Path("../../../models--other/blobs/x"), secret, Path("../../blobs/leak")):
        link.unlink()
        link.symlink_to(target)
        (blobs / "leak").unlink(missing_ok=True)
        (blobs / "leak").symlink_to(secret)
        yield link
    blobs.rename(blobs.with_name("kept"))
    blobs.symlink_to(secret.parent)
    link.unlink()
    link.symlink_to(Path("../../blobs") / secret.name)
    yield link


def test_blobs_of_others_and_blobs_that_are_links_are_refused(model: Path, tmp_path: Path) -> None:
    snapshot = cache_of(model, tmp_path / "hub")
    secret = tmp_path / "secret"
    secret.write_text("{}")
    found = list[str]()
    for link in hostile_blobs(snapshot, secret):
        with pytest.raises(OSError, match=OUT):
            read_inside(link, 1000)
        found.append(str(link.readlink()))
    assert len(found) == 4


def test_links_inside_the_folder_are_followed(model: Path, tmp_path: Path) -> None:
    (model / "files").mkdir()
    (model / "tokenizer.json").rename(model / "files" / "tokenizer.json")
    (model / "tokenizer.json").symlink_to("files/tokenizer.json")
    compile_tiny(model, tmp_path / "out", CHEAP)
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert load_tokenizer(tmp_path / "out")


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open files lead to no name, as on systems that have no /proc."""
    plain = os.readlink

    def readlink(path: str) -> str:
        return "" if path.startswith("/proc") else plain(path)

    monkeypatch.setattr(os, "readlink", readlink)


def test_what_was_opened_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is exchanged for a plain file between the opening and the look."""
    secret, link = tmp_path / "secret", tmp_path / "model" / "tokenizer.json"
    secret.write_text(SECRET)
    link.parent.mkdir()
    plain = os.open

    def exchange(*given: object, **named: object) -> int:
        link.unlink(missing_ok=True)
        link.symlink_to(secret)
        handle = plain(*given, **named)  # type: ignore[arg-type]
        link.unlink()
        link.write_text("{}")
        return handle

    monkeypatch.setattr(os, "open", exchange)
    with pytest.raises(OSError, match=OUT):
        read_inside(link, 1000)
    without_proc(monkeypatch)
    with pytest.raises(OSError, match=OUT):
        read_inside(link, 1000)


def test_without_proc_the_rule_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(SECRET)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "plain").write_text("plain")
    (folder / "inside").symlink_to("plain")
    (folder / "outside").symlink_to(tmp_path / "secret")
    without_proc(monkeypatch)
    assert read_inside(folder / "plain", 9) == read_inside(folder / "inside", 9) == b"plain"
    with pytest.raises(OSError, match=OUT):
        read_inside(folder / "outside", 99)


@pytest.mark.parametrize("name", COPIED)
def test_what_is_copied_is_what_its_name_says(name: str, model: Path, tmp_path: Path) -> None:
    (model / name).write_bytes(SECRET.encode() + b"\xff")
    what = "text in UTF-8" if name.endswith(".jinja") else "JSON"
    with pytest.raises(InvalidCheckpoint, match=f"{name} is no {what}"):
        compile_tiny(model, tmp_path / "out", CHEAP)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_artifact_that_leads_out_is_not_loaded(model: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "out", CHEAP)
    lead_out(tmp_path / "out", "model-00001-of-00002.safetensors")
    with pytest.raises(InvalidArtifact, match=OUT):
        qdc.load(tmp_path / "out")
