"""An artifact's files have digests: what has changed since it was written is refused, by name."""

import hashlib
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qdc
from bench.flips import flip_all
from qdc.artifact.digests import CARD, DIGESTS, Digests
from qdc.errors import InvalidArtifact, InvalidCheckpoint, QdcError
from qdc.numerics.finite import is_finite
from qdc.pipeline.registry import standard_registry
from qdc.runtime.integrity import Integrity, examine
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny

SHARD = "model-00001-of-00003.safetensors"
LAYER = "model.transformer.blocks.0.q_proj"
NORM = "model.transformer.blocks.0.attn_norm.weight"
TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors of a shard, whose header stays as it was."""
    tensors = load_file(folder / SHARD)
    change(tensors)
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})


def examined(folder: Path) -> Integrity:
    return examine(folder, standard_registry(), lambda *_: None)


def test_every_file_has_the_digest_of_its_bytes(artifact: Path) -> None:
    found = dict(line.split("  ")[::-1] for line in (artifact / DIGESTS).read_text().splitlines())
    assert found == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in artifact.iterdir()
        if path.name not in (DIGESTS, CARD)
    }
    assert list(found) == sorted(found)
    assert {"config.json", "ir.qdc", "tokenizer.json", SHARD} <= found.keys()


def test_the_list_is_one_of_sha256sum(artifact: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum is here")
    done = subprocess.run(["sha256sum", "--check", "--strict", DIGESTS], cwd=artifact, check=False)
    assert done.returncode == 0


def test_every_backend_is_sealed(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compile_tiny(artifact.with_name("model"), out, backend="triton")
    assert {"kernels.json", SHARD} <= set(Digests.of(out).listed or {})
    assert examined(out).whole
    assert (Digests.of(out).listed or {})[SHARD] == (Digests.of(artifact).listed or {})[SHARD]


def test_flipped_bits_are_refused_or_harmless_and_found(copy: Path) -> None:
    """Three flips in every file that has a digest; ``bench.flips`` makes more."""
    counts = flip_all(copy, 3 * (len(list(copy.iterdir())) - 1), 0, control=False)
    assert CARD not in counts
    assert {count.flips for count in counts.values()} == {3}
    assert [name for name, count in counts.items() if count.found < count.flips] == []
    assert [name for name, count in counts.items() if count.wrong or count.shown] == []
    assert {name for name, count in counts.items() if count.harmless} <= {"ir.qdc", DIGESTS}


def zero_norm(tensors: dict[str, Tensor]) -> None:
    tensors[NORM].zero_()


def noise(tensors: dict[str, Tensor]) -> None:
    planes = tensors[f"{LAYER}.planes"]
    planes.copy_(torch.randint(0, 256, planes.shape, dtype=torch.uint8))


def exponent(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.row_scale"].view(torch.int16)[0, 0] ^= 1 << 13


@pytest.mark.parametrize("change", [zero_norm, noise, exponent])
def test_what_was_taken_silently_is_refused(
    change: Callable[[dict[str, Tensor]], None], artifact: Path, copy: Path
) -> None:
    edit(copy, change)
    with pytest.raises(
        InvalidArtifact, match="a file is not as the artifact was written"
    ) as caught:
        qdc.load(copy)
    assert caught.value.where == (SHARD,)
    assert f"qdc verify {copy}" in caught.value.help
    sound, changed = qdc.load(artifact)(TOKENS), qdc.load(copy, verify=False)(TOKENS)
    assert not torch.equal(sound, changed)
    (damage,) = examined(copy).damaged
    assert damage.file == SHARD
    if change is not zero_norm:  # what the checkpoint had, the dump has no digest of
        assert f"{LAYER}." in damage.problems[1]


def test_all_that_differ_are_named(copy: Path) -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 3)]
    for name in names:
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(bytes(data))
    with pytest.raises(InvalidArtifact, match="2 files are not") as caught:
        qdc.load(copy)
    assert list(caught.value.where) == names


def test_an_artifact_of_before_is_taken_with_a_note(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = unsealed(artifact, tmp_path / "older")
    with caplog.at_level(logging.WARNING, "qdc"):
        loaded = qdc.load(older)(TOKENS)
    assert caplog.messages == [f"{older} has no digests ({DIGESTS}): its files are not verified"]
    assert torch.equal(loaded, qdc.load(artifact)(TOKENS))
    caplog.clear()
    qdc.load(older, verify=False)
    qdc.load(artifact)
    assert not caplog.messages
    found = examined(older)
    assert (found.whole, found.files) == (True, 0)
    assert found.tensors == examined(artifact).tensors > 0
    assert {*found.unverified, CARD} == {path.name for path in older.iterdir()}
    edit(older, noise)
    (damage,) = examined(older).damaged
    assert damage.problems == (f"{LAYER}.planes is not the tensor that was compiled",)


LISTS = {
    "empty": (b"", "not as the artifact was written"),
    "no text": (b"\xff\xfe", "is no text in UTF-8"),
    "garbage": (b"hello\n", "says nothing that can be read in line 1"),
    "short": (b"ab  config.json\n", "in line 1"),
    "elsewhere": (b"0" * 64 + b"  ../config.json\n", "in line 1"),
    "twice": ((b"0" * 64 + b"  config.json\n") * 2, "in line 2"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_is_none_is_refused(case: str, copy: Path) -> None:
    data, what = LISTS[case]
    (copy / DIGESTS).write_bytes(data)
    with pytest.raises(InvalidArtifact, match=what):
        qdc.load(copy)
    assert not examined(copy).whole or case == "empty"


def test_a_list_may_not_lack_what_is_loaded(copy: Path) -> None:
    lines = (copy / DIGESTS).read_text().splitlines(keepends=True)
    (copy / DIGESTS).write_text("".join(line for line in lines if SHARD not in line))
    with pytest.raises(InvalidArtifact) as caught:
        qdc.load(copy)
    assert caught.value.where == (f"{SHARD}: {DIGESTS} has no digest of it",)


def test_tokenizer_and_template_have_digests_too(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digests = Digests.of(copy)
    digests.check_companions()
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    with caplog.at_level(logging.WARNING, "qdc"):
        digests.check_companions()
    assert ["chat_template.jinja has no digest" in each for each in caplog.messages] == [True]
    (copy / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InvalidArtifact, match="a file is not as"):
        digests.check_companions()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidArtifact, match=r"cannot read tokenizer_config\.json: no such file"):
        digests.check_companions()
    with pytest.raises(InvalidArtifact):
        qdc.export(copy, out=copy.with_name("dense"))
    assert not copy.with_name("dense").exists()


def test_an_export_reads_what_has_its_digests(copy: Path, tmp_path: Path) -> None:
    edit(copy, exponent)
    out = tmp_path / "dense"
    with pytest.raises(InvalidArtifact, match="a file is not as"):
        qdc.export(copy, out=out)
    assert not out.exists()
    assert qdc.export(copy, out=out, digests=False).tensors
    with pytest.raises(QdcError, match="proves nothing"):
        qdc.export(copy, out=out, force=True, verify=True, digests=False)


def test_a_proof_begins_with_the_whole_artifact(copy: Path, tmp_path: Path) -> None:
    """The dump is not exported, and is a part of what was compiled."""
    (copy / "ir.qdc").write_bytes((copy / "ir.qdc").read_bytes() + b"\0")
    with pytest.raises(InvalidArtifact, match="the artifact is not as it was written") as caught:
        qdc.export(copy, out=tmp_path / "dense", verify=True)
    assert caught.value.where[0].startswith("ir.qdc: ")
    assert qdc.export(copy, out=tmp_path / "dense").tensors


def test_a_file_that_is_not_read_does_no_harm_and_is_told(
    artifact: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "ir.qdc").write_bytes((copy / "ir.qdc").read_bytes() + b"\0")
    with caplog.at_level(logging.WARNING, "qdc"):
        loaded = qdc.load(copy)(TOKENS)
    (told,) = caplog.messages
    assert told.startswith(f"{copy / 'ir.qdc'} is not as the artifact was written")
    assert torch.equal(loaded, qdc.load(artifact)(TOKENS))
    caplog.clear()
    (copy / "ir.qdc").unlink()  # what is not needed may be left out
    qdc.load(copy)
    assert not caplog.messages


def test_what_waits_for_digests_ends_with_what_reads(copy: Path) -> None:
    """An error of the reader is told, and no thread goes on."""
    digests = Digests.of(copy)
    with pytest.raises(ZeroDivisionError), digests.beside([SHARD] * 100):
        raise ZeroDivisionError


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_dense_tensors_are_finite(number: float, artifact: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[NORM][3] = number

    hostile = unsealed(artifact, tmp_path / "hostile")
    edit(hostile, spoil)
    for verify in (True, False):
        with pytest.raises(InvalidArtifact, match="holds NaN or infinity") as caught:
            qdc.load(hostile, verify=verify)
        assert caught.value.where == (NORM,)
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=32, edit=spoil)
    with pytest.raises(InvalidCheckpoint, match="1 tensor holds NaN or infinity") as refused:
        qdc.load_original(model)
    assert refused.value.where == (NORM,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_finite_is_what_isfinite_says(dtype: torch.dtype) -> None:
    for shape in ((), (1,), (7, 33), (0,), (3, 0)):
        tensor = torch.randn(shape).to(dtype)
        assert is_finite(tensor)
        for number in (float("nan"), float("inf"), float("-inf")):
            if tensor.numel():
                odd = tensor.clone().reshape(-1)
                odd[-1] = number
                assert not is_finite(odd.reshape(shape))
    assert is_finite(torch.tensor([1, 2]))


def test_files_are_compared_on_all_processors(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four files at once on four processors; the barrier breaks if they come one by one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    barrier = threading.Barrier(4, timeout=5)

    def differs(self: Digests, name: str, stop: Callable[[], bool]) -> str:
        barrier.wait()
        return ""

    monkeypatch.setattr(Digests, "differs", differs)
    digests = Digests.of(artifact)
    assert digests.listed is not None
    shards = sorted(digests.listed)[:4]
    with Digests(artifact, dict.fromkeys(shards, "")).beside(shards):
        pass
