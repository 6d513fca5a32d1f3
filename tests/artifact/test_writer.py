"""The writer: all or nothing, and nothing of others is overwritten."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdc.artifact.writer import ArtifactWriter, check_target
from qdc.errors import InvalidArtifact, OutputExists, QdcError

ARTIFACT = {"quantization_config": {"quant_method": "qdc"}}
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")


def make_artifact(folder: Path, config: object = ARTIFACT) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "old.txt").write_text("old")
    return folder


def test_a_commit_makes_the_folder_appear_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    writer = ArtifactWriter(out)
    writer.shard("a.safetensors", {"x": torch.arange(4), "b": torch.ones(2, 3).half()})
    writer.index()
    writer.json("config.json", {"k": "ü"})
    assert not out.exists()
    total = writer.nbytes
    writer.commit()
    writer.abort()
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    assert sum(p.stat().st_size for p in out.iterdir()) == total
    assert torch.equal(load_file(out / "a.safetensors")["x"], torch.arange(4))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"b": "a.safetensors", "x": "a.safetensors"}
    assert index["metadata"]["total_size"] == writer.tensor_bytes == 4 * 8 + 6 * 2
    assert "ü" in (out / "config.json").read_text(encoding="utf-8")
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_files_and_folder_have_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        writer = ArtifactWriter(tmp_path / "out")
        writer.shard("a.safetensors", {"x": torch.arange(4)})
        writer.json("config.json", {})
        writer.commit()
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~mask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


def test_the_size_of_a_shard_is_its_header_and_its_data(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "out")
    tensors = {"x": torch.zeros(3, 5), "y": torch.zeros(7, dtype=torch.uint8)}
    writer.shard("a.safetensors", tensors)
    data = (writer.folder / "a.safetensors").read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    assert len(data) == 8 + header + 3 * 5 * 4 + 7
    writer.abort()


def test_an_abort_leaves_no_trace(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "out")
    writer.file("a", b"x")
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_is_written_once(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "out")
    writer.shard("a.safetensors", {"x": torch.zeros(1), "y": torch.zeros(1)})
    with pytest.raises(InvalidArtifact, match="a tensor is written twice") as caught:
        writer.shard("b.safetensors", {"y": torch.zeros(1), "z": torch.zeros(1)})
    assert caught.value.where == ("y",)
    writer.abort()


def test_an_old_artifact_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = make_artifact(tmp_path / "out")
    writer = ArtifactWriter(out, force=True)
    writer.json("config.json", {})
    assert (out / "old.txt").exists()
    writer.commit()
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_old_artifact_comes_back_if_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_artifact(tmp_path / "out")
    writer = ArtifactWriter(out, force=True)
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self == writer.folder:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr("qdc.artifact.exchange.exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(QdcError, match="cannot write to"):
        writer.commit()
    writer.abort()
    assert (out / "old.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_came_there_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "out")
    make_artifact(tmp_path / "out")
    with pytest.raises(OutputExists):
        writer.commit()
    writer.abort()
    assert (tmp_path / "out" / "old.txt").read_text() == "old"


@pytest.mark.parametrize("force", [False, True])
def test_free_and_empty_targets_are_fine(force: bool, tmp_path: Path) -> None:
    check_target(tmp_path / "free", force=force)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", force=force)


def test_an_existing_artifact_needs_force(tmp_path: Path) -> None:
    out = make_artifact(tmp_path / "out")
    with pytest.raises(OutputExists, match="is there already") as caught:
        check_target(out, force=False)
    assert "--force" in caught.value.help
    check_target(out, force=True)


@pytest.mark.parametrize(
    "config",
    [{}, {"quantization_config": {"quant_method": "gptq"}}, {"quantization_config": 3}, [], 7],
)
def test_force_does_not_replace_what_is_no_artifact(config: object, tmp_path: Path) -> None:
    out = make_artifact(tmp_path / "out", config)
    with pytest.raises(OutputExists, match="is no qdc artifact; --force does not replace it"):
        check_target(out, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_files_and_links_are_never_replaced(kind: str, force: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        out.symlink_to(make_artifact(tmp_path / "real"))
    else:
        out.symlink_to(tmp_path / "gone")
    with pytest.raises(OutputExists, match="is there and is no folder"):
        check_target(out, force=force)


@pytest.mark.parametrize("name", ["x" * 300, "file/out"])
def test_impossible_places_say_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QdcError, match="cannot write to"):
        ArtifactWriter(tmp_path / name)


@not_as_root
def test_a_place_without_permission_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(QdcError, match="permission denied"):
        ArtifactWriter(closed / "out")


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    writer = ArtifactWriter(tmp_path / "out")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QdcError, match="no space left on device"):
        writer.file("a", b"x")
    writer.abort()
    assert list(tmp_path.iterdir()) == []
