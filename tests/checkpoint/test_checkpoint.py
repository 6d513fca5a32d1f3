import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdc.checkpoint import folder, layout
from qdc.checkpoint.folder import Checkpoint
from qdc.checkpoint.layout import INDEX, SINGLE
from qdc.errors import InvalidCheckpoint
from tests.support.checkpoints import write_checkpoint

QUERY, UP = (f"model.transformer.blocks.{n}.weight" for n in ("0.q_proj", "1.up_proj"))


def refused(folder: Path) -> InvalidCheckpoint:
    """The error of a folder that cannot be opened."""
    with pytest.raises(InvalidCheckpoint) as caught:
        Checkpoint(folder)
    assert str(caught.value).startswith("error[QDC302] ")
    return caught.value


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    change(index)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, shards=3)


def test_headers_are_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path))
    assert len(checkpoint.headers) == 9 * 2 + 3
    assert str(checkpoint.headers[UP]) == "bf16[320,160]"
    assert UP in checkpoint
    assert "nothing" not in checkpoint
    assert checkpoint.config["d_model"] == 160
    assert checkpoint.nbytes == (tmp_path / SINGLE).stat().st_size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_tensors_come_as_they_are_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path, dtype=dtype))
    found = checkpoint.tensor(UP)
    assert found.dtype == dtype
    assert torch.equal(found, load_file(tmp_path / SINGLE)[UP])


def test_shards_hold_the_same_as_one_file(tmp_path: Path, sharded: Path) -> None:
    whole, parts = Checkpoint(write_checkpoint(tmp_path / "one")), Checkpoint(sharded)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    assert parts.headers == whole.headers
    assert all(torch.equal(parts.tensor(n), whole.tensor(n)) for n in whole.headers)
    assert parts.scan() == whole.scan()


def test_opening_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the header of each file, whatever the size of what follows it."""
    write_checkpoint(tmp_path)
    opened = layout.open_tensors

    class HeaderOnly:
        def __init__(self, file: Any) -> None:
            self.keys, self.get_slice = file.keys, file.get_slice

        def __enter__(self) -> "HeaderOnly":
            return self

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(folder, "open_tensors", lambda path: HeaderOnly(opened(path)))
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(AttributeError, match="get_tensor"):
        checkpoint.tensor(UP)


def test_an_unknown_tensor_has_neighbours(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path))
    with pytest.raises(InvalidCheckpoint, match="no tensor") as caught:
        checkpoint.tensor(UP.replace("up_proj", "up_porj"))
    assert UP in caught.value.help


def test_tokenizer_files_are_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "modeling_llada.py").write_text("raise SystemExit", encoding="utf-8")
    names = [file.name for file in Checkpoint(tmp_path).tokenizer_files()]
    assert names == ["tokenizer.json", "tokenizer_config.json"]


def test_the_scan_depends_on_every_bit(tmp_path: Path) -> None:
    def digest(name: str, **changes: Any) -> str:
        return Checkpoint(write_checkpoint(tmp_path / name, **changes)).scan()

    same = digest("same")
    assert digest("again") == same
    assert digest("seed", seed=1) != same
    assert digest("dtype", dtype=torch.float16) != same
    assert digest("sign", edit=lambda tensors: tensors[UP][0, 0].neg_()) != same
    assert digest("config", edit_config=lambda config: config.update(rope_theta=2e4)) != same


def test_the_scan_reports_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    Checkpoint(write_checkpoint(tmp_path)).scan(lambda done, total: seen.append((done, total)))
    assert seen == [(n, 21) for n in range(1, 22)]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_all_tensors_that_are_not_finite_are_named(tmp_path: Path, number: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QUERY][3, 5] = number
        tensors[UP][-1, -1] = number

    checkpoint = Checkpoint(write_checkpoint(tmp_path, edit=spoil))
    with pytest.raises(InvalidCheckpoint, match="2 tensors hold NaN or infinity") as caught:
        checkpoint.scan()
    assert caught.value.where == (QUERY, UP)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert "is not there" in refused(tmp_path / "nowhere").what
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert "is a file" in refused(file).what


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "config.json is no JSON"),
        (b"{", "config.json is no JSON"),
        (b"\xff\xfe{}", "config.json is no JSON"),
        (b"[" * 100_000, "config.json is nested more than 100 deep"),
        (b"[1]", "config.json holds no object"),
        (b"null", "config.json holds no object"),
    ],
    ids=lambda found: found[:8].decode("latin1") if isinstance(found, bytes) else "",
)
def test_a_configuration_that_is_none(tmp_path: Path, content: bytes, text: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    error = refused(tmp_path)
    assert error.what == text
    assert error.where == (str(tmp_path / "config.json"),)
    assert error.help == "fetch it again"


def test_a_configuration_that_is_missing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    assert refused(tmp_path).what == "cannot read config.json: no such file or directory"
    (tmp_path / "config.json").mkdir()
    assert refused(tmp_path).what == "cannot read config.json: is a directory"


def test_a_folder_without_safetensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / SINGLE).rename(tmp_path / "pytorch_model.bin")
    error = refused(tmp_path)
    assert error.what == f"the folder holds neither {SINGLE} nor {INDEX}"
    assert "safetensors only" in error.help


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.5, 0.9999])
def test_a_file_that_is_cut_short(tmp_path: Path, share: float) -> None:
    path = write_checkpoint(tmp_path) / SINGLE
    os.truncate(path, int(path.stat().st_size * share))
    error = refused(tmp_path)
    assert error.what == "the file is no safetensors file, or is cut short"
    assert error.where == (str(path),)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path) / SINGLE
    path.write_bytes(b"<!DOCTYPE html>")
    assert refused(tmp_path).where == (str(path),)


def test_a_shard_that_is_cut_short(sharded: Path) -> None:
    path = sharded / "model-00002-of-00003.safetensors"
    os.truncate(path, 1000)
    assert refused(sharded).where == (str(path),)


def test_shards_that_are_missing_are_all_named(sharded: Path) -> None:
    gone = [f"model-0000{n}-of-00003.safetensors" for n in (1, 3)]
    for name in gone:
        (sharded / name).unlink()
    error = refused(sharded)
    assert error.what == "the index names shards that are missing"
    assert error.where == tuple(gone)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "",
        "sub/model.safetensors",
        "/tmp/x.safetensors",
        "model.pkl",
        {"a": 1},
        None,
        3,
    ],
    ids=str,
)
def test_the_index_cannot_point_outside_its_folder(sharded: Path, name: object) -> None:
    outside = sharded.parent / "model.safetensors"
    save_file({UP: torch.zeros(1)}, outside)
    edit_index(sharded, lambda index: index["weight_map"].update({UP: name}))
    error = refused(sharded)
    assert error.what == "the index names files outside its folder"
    assert error.where == (str(name),)


@pytest.mark.parametrize(
    "name", ["x" * 5000 + ".safetensors", "a\0b.safetensors"], ids=["long", "nul"]
)
def test_the_index_cannot_name_what_no_file_can_be_called(sharded: Path, name: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({UP: name}))
    assert refused(sharded).what == "the index names shards that are missing"


@pytest.mark.parametrize("weights", [None, {}, [], "all"], ids=str)
def test_an_index_without_a_map(sharded: Path, weights: object) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=weights))
    assert refused(sharded).what == "the index has no weight_map"


def test_an_index_that_is_no_json(sharded: Path) -> None:
    (sharded / INDEX).write_text("{", encoding="utf-8")
    assert refused(sharded).what == f"{INDEX} is no JSON"


def test_an_index_that_names_too_much(sharded: Path) -> None:
    edit_index(
        sharded,
        lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors"),
    )
    error = refused(sharded)
    assert error.what == "the index names tensors that its shards do not hold"
    assert error.where == ("ghost",)


def test_an_index_that_names_too_little(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop(UP))
    error = refused(sharded)
    assert error.what == "the shards hold tensors that the index lacks"
    assert error.where == (UP,)


def test_the_index_decides_between_two_copies(sharded: Path) -> None:
    """A tensor in two shards is read from the one that the index names."""
    index = json.loads((sharded / INDEX).read_text(encoding="utf-8"))
    owner = index["weight_map"][UP]
    other = next(name for name in sorted(set(index["weight_map"].values())) if name != owner)
    tensors = load_file(sharded / other)
    save_file({**tensors, UP: torch.zeros(3, 3)}, sharded / other)
    assert Checkpoint(sharded).headers[UP].shape == (320, 160)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64], ids=str)
def test_dtypes_that_qdc_does_not_know(tmp_path: Path, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] = tensors[UP].float().to(dtype)

    error = refused(write_checkpoint(tmp_path, edit=change))
    assert f"tensor {UP} has dtype" in error.what
    assert error.where == (str(tmp_path / SINGLE),)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("", torch.zeros(2)), ("deep", torch.zeros((1,) * 9))],
    ids=["name", "deep"],
)
def test_a_tensor_that_no_model_has(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    error = refused(write_checkpoint(tmp_path, edit=lambda tensors: tensors.update({name: tensor})))
    assert "odd name or shape" in error.what


def test_a_single_file_counts_where_all_shards_of_the_index_are_gone(sharded: Path) -> None:
    """What transformers leaves that has saved one file over a model in shards."""
    for shard in sharded.glob("model-*"):
        shard.unlink()
    write_checkpoint(sharded, seed=1)
    assert (sharded / INDEX).is_file()
    checkpoint = Checkpoint(sharded)
    assert torch.equal(checkpoint.tensor(UP), load_file(sharded / SINGLE)[UP])


def test_some_shards_beside_a_single_file_are_not_enough(sharded: Path) -> None:
    write_checkpoint(sharded)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    error = refused(sharded)
    assert error.where == ("model-00002-of-00003.safetensors",)
    assert f"remove {INDEX} if {SINGLE} is the model" in error.help


def test_two_layouts_of_the_same_tensors_are_taken(sharded: Path) -> None:
    expected = Checkpoint(sharded).scan()
    write_checkpoint(sharded)
    assert Checkpoint(sharded).scan() == expected


@pytest.mark.parametrize("change", ["value", "dtype", "more", "fewer"])
def test_two_layouts_of_different_tensors_are_refused(sharded: Path, change: str) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        match change:
            case "value":
                tensors[UP][3, 4] += 1
            case "dtype":
                tensors[UP] = tensors[UP].half()
            case "more":
                tensors["extra"] = torch.zeros(1)
            case "fewer":
                del tensors[UP]

    write_checkpoint(sharded, edit=edit)
    error = refused(sharded)
    assert error.what == f"{SINGLE} and the shards of {INDEX} hold different tensors"
    assert error.where == (("extra",) if change == "more" else (UP,))
    assert SINGLE in error.help
    assert INDEX in error.help


def test_an_index_of_the_single_file_is_one_layout(tmp_path: Path) -> None:
    tensors = load_file(write_checkpoint(tmp_path) / SINGLE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, SINGLE)}))
    assert set(Checkpoint(tmp_path).headers) == set(tensors)


@pytest.mark.parametrize("name", [SINGLE, "config.json", INDEX])
def test_a_pointer_of_git_lfs_says_so(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    error = refused(tmp_path)
    assert error.what.lower().startswith(f"cannot read {name}: it is a pointer of git lfs")
    assert "git lfs pull" in error.what.lower()
    assert error.where == (str(tmp_path / name),)


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path) / name
    denied = PermissionError(13, "Permission denied", str(path))

    def deny(*_: object, **__: object) -> None:
        raise denied

    monkeypatch.setattr(folder, "read_inside", deny) if name == "config.json" else None
    monkeypatch.setattr(layout, "safe_open", deny)
    monkeypatch.setattr(layout, "read_beginning", deny)
    error = refused(tmp_path)
    assert error.what == f"cannot read {name}: permission denied"
    assert "chmod" in error.help


@pytest.mark.parametrize(
    ("given", "snapshots"),
    [("models--a--b", 1), ("models--a--b", 2), ("models--a--b/snapshots", 1), (".", 1)],
)
def test_a_folder_of_the_cache_points_to_its_snapshots(
    tmp_path: Path, given: str, snapshots: int
) -> None:
    places = [tmp_path / "models--a--b" / "snapshots" / f"{n}abc" for n in range(snapshots)]
    for place in places:
        write_checkpoint(place)
    error = refused(tmp_path / given)
    assert "snapshots/" in error.what
    assert error.where == tuple(map(str, places))
    assert Checkpoint(places[0]).headers


def test_a_quantized_dtype_says_what_to_do(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] = tensors[UP].float().to(torch.float8_e4m3fn)

    error = refused(write_checkpoint(tmp_path, edit=change))
    assert error.what == f"tensor {UP} has dtype F8_E4M3: the checkpoint is quantized already"
    assert "that it was made from" in error.help


def test_shards_without_an_index_are_named(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    error = refused(sharded)
    assert len(error.where) == 3
    assert INDEX in error.help
