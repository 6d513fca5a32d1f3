"""The sound files that are damaged: small, of every kind that qdc reads."""

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

import qdc
from bench.common.checkpoint import build
from qdc.artifact.digests import DIGESTS
from qdc.artifact.journal import Entry, File, Journal, PassRecord, StreamState

PLAIN = "quantize-vocab,stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0.5},daq-lower),pack"
EIGHT = PLAIN.replace("daq-lower", "daq-lower{scale-bits=8}")
NATIVE, TEXT, DATASET, PARTIAL, SEALED = "native", "text", "dataset", "partial", "sealed"
PIPELINES = {"artifact-16": PLAIN, "artifact-8": EIGHT}
DIGEST = "0" * 64


@dataclass(frozen=True)
class Sources:
    """Folders that a mutation copies before it damages the copy."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        """The folder of this name."""
        return self.folder / name


def write_sources(folder: Path, wanted: Collection[str]) -> Sources:
    """Write the folders of these names: artifacts of width 16, text, a dataset, a journal."""
    artifacts = {n: p for n, p in PIPELINES.items() if n in wanted or SEALED in wanted}
    if artifacts:
        model = build(
            folder / "model", regions=2, width=16, hidden=40, vocabulary=320, dtype=torch.float16
        )
        _small_tokenizer(model)
    for name, passes in artifacts.items():
        qdc.compile(model, passes, out=folder / name, samples=2, length=8)
        report = folder / f"{name}-report"
        (report / "report.json").rename(folder / name / "report.json")
        if SEALED in wanted:
            shutil.copytree(folder / name, folder / SEALED, dirs_exist_ok=True)
        (folder / name / DIGESTS).unlink()  # else they would refuse all that is changed
    if NATIVE in wanted:
        from tests.support.natives import write_native

        source = write_native(folder / "native-model", "llama")
        qdc.compile(source, "rtn-lower,pack", out=folder / NATIVE, write_report=False)
        (folder / NATIVE / DIGESTS).unlink()
    if TEXT in wanted:
        _write_text(folder / TEXT)
    if DATASET in wanted:
        _write_dataset(folder / DATASET)
    if PARTIAL in wanted:
        (folder / PARTIAL).mkdir(parents=True)
        (folder / PARTIAL / "journal.json").write_text(_journal().model_dump_json(), "utf-8")
    return Sources(folder)


def _write_text(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = ['{"text": "for i in range(10)"}', '{"text": "\\u00e9", "n": [1, {}]}'] * 3
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _small_tokenizer(folder: Path) -> None:
    """Bytes and a few merges: short enough that damage meets more than its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", "<mask>", *letters, "in"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("i", "n")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<mask>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": "<end>", "mask_token": {"content": "<mask>"}, "model_max_length": 64,
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _journal() -> Journal:
    file = File(name="region-0.safetensors", sha256=DIGEST)
    stream = StreamState(
        place=0, original=False, stops=(1, 2), left=3, calls=4, routed=0, batches=(file,)
    )
    return Journal(
        identity={"pipeline": "rtn", "threads": "1"},
        total=3,
        entries=(
            Entry(step="blocks.0", written=(file,), tensors=(file,), graph=file, streams=(stream,)),
            Entry(step="blocks.1", written=(file,)),
        ),
        linear_calls=12.0,
        samples=2,
        passes=(PassRecord(seconds=0.5, peak_bytes=100, units=2),),
        remarks=("a remark",),
        seconds=1.0,
        resumed=0,
    )


def _write_dataset(folder: Path) -> None:
    """What ``save_to_disk`` writes, if pyarrow is there; else its state alone."""
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}), "utf-8")
    try:
        import pyarrow
    except ImportError:
        return
    table = pyarrow.table({"text": ["for i in range(10)", "a", "bc"] * 4})
    with (
        pyarrow.OSFile(str(folder / name), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
