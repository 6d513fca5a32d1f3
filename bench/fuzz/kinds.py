"""The kinds of mutations: what each copies, and how it damages the copy."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from qdc.artifact.digests import DIGESTS

from .dumps import change_graph, write_bomb
from .shards import change_header, change_tensors
from .sources import DATASET, NATIVE, PARTIAL, PIPELINES, SEALED, TEXT
from .values import change_bytes, change_json, change_one, hostile, json_bytes, near

CONFIG, INDEX, DUMP, REPORT = "config.json", "model.safetensors.index.json", "ir.qdc", "report.json"
JOURNAL = "journal.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
BOTH = tuple(PIPELINES)
NAMES: tuple[Any, ...] = (
    "../x.safetensors", "/etc/passwd", "/dev/zero", "a/b.safetensors", ".safetensors", "",
    "model\x00.safetensors", "\ud800.safetensors", "x" * 5000 + ".safetensors", "config.json",
    "model-00001-of-00003.safetensors", "model-00009-of-00003.safetensors", "..", 3, None, [],
    "\\..\\x.safetensors", "..\u2215x.safetensors",
)  # fmt: skip
MODELS = (
    "LlamaForCausalLM", "BertForMaskedLM", "Qwen3MoeForCausalLM", "LLaDAModelLM", "DreamModel",
    "SDARForCausalLM", "MambaForCausalLM", "T5ForConditionalGeneration", "../x", "", None,
)  # fmt: skip
SPARSE = 1 << 40


@dataclass(frozen=True)
class Kind:
    """A kind of mutation."""

    damage: Callable[[Path, Random], None]
    readers: tuple[str, ...]
    """Who reads the copy; the first says whether it was taken."""
    sources: tuple[str, ...] = BOTH


def _shard(folder: Path, chance: Random) -> Path:
    return chance.choice(sorted(folder.glob("*.safetensors")))


def _any_bytes(folder: Path, chance: Random) -> None:
    path = chance.choice(sorted(folder.iterdir()))
    path.write_bytes(change_bytes(path.read_bytes(), chance))


def _bytes_of(*names: str) -> Callable[[Path, Random], None]:
    def damage(folder: Path, chance: Random) -> None:
        path = folder / chance.choice(names)
        path.write_bytes(change_bytes(path.read_bytes(), chance))

    return damage


def _json_of(*names: str) -> Callable[[Path, Random], None]:
    def damage(folder: Path, chance: Random) -> None:
        path = folder / chance.choice(names)
        path.write_bytes(change_json(path.read_bytes(), chance))

    return damage


def _shard_bytes(folder: Path, chance: Random) -> None:
    path = _shard(folder, chance)
    path.write_bytes(change_bytes(path.read_bytes(), chance))


def _layers(folder: Path, chance: Random) -> None:
    """Codecs, orders, blocks, sizes, and layers that are not there."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    part: dict[str, Any] = config["quantization_config"]
    layers: dict[str, dict[str, Any]] = part["layers"]
    name, other = chance.choice(list(layers)), chance.choice(list(layers))
    fields = layers[name]
    match chance.randrange(12):
        case 0:
            fields["codec"] = hostile(chance)
        case 1:
            fields["rows"] = chance.choice([0, -1, 2**24, 2**40, fields["rows"] + 1, True, "16"])
        case 2:
            fields["columns"] = chance.choice([0, -1, 2**24, 2**40, fields["columns"] + 8, 1.5])
        case 3:
            fields["orders"] = chance.choice([[], [5], [0], [2] * 10**6, [2**64], ["2"], [True]])
        case 4:
            fields["block"] = chance.choice([0, 8, 12, 2**16, 2**40, -8, None])
        case 5:
            key = chance.choice(list(fields))
            fields[key] = near(fields[key], chance)
        case 6:
            layers[chance.choice(["x", "../x", "", "model", f"{name}.x", "\ud800"])] = fields
        case 7:
            del layers[name]
        case 8:
            layers[name] = layers[other]
        case 9:
            part["added_biases"] = chance.choice([[name], ["x"], [""], [name] * 2, [3], "abc"])
        case 10:
            part["stages"] = chance.choice([[["ghost"]], [[name] * 1000], hostile(chance)])
        case _:
            layers.update({f"x.{number}": fields for number in range(20_000)})
    (folder / CONFIG).write_bytes(json_bytes(config, chance))


def _model(folder: Path, chance: Random) -> None:
    """What the configuration says of the model: sizes, variants, another family."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    part = config.pop("quantization_config")
    key = chance.choice(list(config))
    match chance.randrange(8):
        case 0:
            config["architectures"] = [chance.choice(MODELS)]
            config["model_type"] = chance.choice(["llama", "bert", "llada", "mamba", "t5", "x"])
        case 1:
            part["frontend"] = "export" if part.get("frontend", "fx") == "fx" else "fx"
        case 2 | 3:
            config[key] = near(config[key], chance)
        case 4:
            config[key] = chance.choice([2**20, 2**24, 2**31, 2**40, 2**63, 10**30])
        case 5:
            config[key] = hostile(chance)
        case _:
            config = change_one(config, chance)
            if not isinstance(config, dict):
                config = {"architectures": config}
    config["quantization_config"] = part
    (folder / CONFIG).write_bytes(json_bytes(config, chance))


def _index(folder: Path, chance: Random) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text("utf-8"))
    places: dict[str, Any] = index["weight_map"]
    name = chance.choice(list(places))
    match chance.randrange(6):
        case 0 | 1:
            places[name] = chance.choice(NAMES)
        case 2:
            index["weight_map"] = dict.fromkeys(places, chance.choice(NAMES))
        case 3:
            places[chance.choice(["x", "", "../x", "\ud800", f"{name}x"])] = places.pop(name)
        case 4:
            shards = sorted(map(str, places.values()))
            index["weight_map"] = {key: chance.choice(shards) for key in places}
        case _:
            index["weight_map"] = {f"{i}": places[name] for i in range(50_000)}
    path.write_bytes(json_bytes(index, chance))


def _files(folder: Path, chance: Random) -> None:
    """Put something in a file's place that is no such file."""
    files = sorted(folder.iterdir())
    path, other = chance.choice(files), chance.choice(files)
    data = other.read_bytes()
    path.unlink()
    match chance.randrange(13):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to(chance.choice(["/dev/zero", "/dev/null", "/proc/self/mem", "/"]))
        case 5:
            path.write_bytes(b"")
        case 6:
            path.touch()
            os.truncate(path, chance.choice([SPARSE, 1 << 29, 1 << 33, 100]))
        case 7:
            path.write_bytes(data)
        case 8:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(f"/proc/self/cwd/{os.path.relpath(path)}"[:107])
        case 9:
            path.write_bytes(b"[" * 3_000_000)
        case 10:
            path.write_bytes(b'{"a":' * 300_000)
        case 11:
            path.write_bytes(b"\xef\xbb\xbf" + data)
        case _:
            path.write_bytes(b'{"x": "' + b"x" * 5_000_000 + b'"}')


def _on_shard(change: Callable[[Path, Random], None]) -> Callable[[Path, Random], None]:
    return lambda folder, chance: change(_shard(folder, chance), chance)


def _on_dump(change: Callable[[Path, Random], None]) -> Callable[[Path, Random], None]:
    return lambda folder, chance: change(folder / DUMP, chance)


def _json_bomb(folder: Path, chance: Random) -> None:
    """JSON of up to 20 MiB that would become a gigabyte, in the place of a file or inside one."""
    names = (CONFIG, INDEX, REPORT, TOKENIZERS[1], "text.jsonl")
    path = chance.choice([folder / name for name in names if (folder / name).exists()])
    piece = chance.choice(
        [b"{},", b"[],", b'{"":0},', b"[[1.5]],", b'"",', b"1.5,", b'[{"a":[]}],']
    )
    size = chance.choice([1 << 16, 1 << 16, 1 << 20, 1 << 20, 1 << 20, 20 << 20])
    bomb = b"[" + piece * (size // len(piece)) + b"0]"
    if chance.random() < 0.5:
        whole = path.read_bytes()
        place = whole.find(b"{") + 1
        bomb = whole[:place] + b'"bomb": ' + bomb + b", " + whole[place:]
    path.write_bytes(bomb)


def _links(folder: Path, chance: Random) -> None:
    """A link out of the folder, to a file that is sound, or to one that is not to be seen."""
    path = chance.choice(sorted(folder.iterdir()))
    sound = folder.with_name(f"{folder.name}-elsewhere")
    sound.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(chance.choice([sound, Path("/etc/passwd"), Path("../") / sound.name]))


def _digests(folder: Path, chance: Random) -> None:
    """The list of digests itself: lines repeated, names of other places, no text at all."""
    path = folder / DIGESTS
    lines = path.read_bytes().splitlines(keepends=True)
    match chance.randrange(6):
        case 0:
            path.write_bytes(b"".join(lines) * 2)
        case 1:
            path.write_bytes(b"0" * 64 + b"  ../../etc/passwd\n" + b"".join(lines))
        case 2:
            path.write_bytes(b"".join(chance.sample(lines, len(lines) - 2)))
        case 3:
            path.write_bytes(b"\n" * (5 << 20))
        case _:
            path.write_bytes(change_bytes(path.read_bytes(), chance))


WEIGHTS = ("load", "run", "example")
KINDS: dict[str, Kind] = {
    "any byte": Kind(_any_bytes, (*WEIGHTS, "show", "report", "target")),
    "config bytes": Kind(_bytes_of(CONFIG, INDEX), (*WEIGHTS, "target")),
    "config values": Kind(_json_of(CONFIG), (*WEIGHTS, "target")),
    "layers": Kind(_layers, WEIGHTS),
    "model": Kind(_model, WEIGHTS),
    "index": Kind(_index, WEIGHTS),
    "index values": Kind(_json_of(INDEX), WEIGHTS),
    "shard bytes": Kind(_shard_bytes, WEIGHTS),
    "shard headers": Kind(_on_shard(change_header), WEIGHTS),
    "shard tensors": Kind(_on_shard(change_tensors), WEIGHTS),
    "dump bytes": Kind(_bytes_of(DUMP), ("show",)),
    "dump graphs": Kind(_on_dump(change_graph), ("show",)),
    "dump bombs": Kind(_on_dump(write_bomb), ("show",)),
    "files": Kind(_files, (*WEIGHTS, "show", "report", "target")),
    "json bombs": Kind(_json_bomb, (*WEIGHTS, "report", "target", "text"), (*BOTH, TEXT)),
    "links": Kind(_links, (*WEIGHTS, "show", "target")),
    "digests": Kind(_digests, ("load", "run", "show", "verify"), (SEALED,)),
    "sealed files": Kind(_any_bytes, ("verify", "load", "run", "show"), (SEALED,)),
    "tokenizer bytes": Kind(_bytes_of(*TOKENIZERS), ("run",)),
    "tokenizer values": Kind(_json_of(*TOKENIZERS), ("run",)),
    "report bytes": Kind(_bytes_of(REPORT), ("report",)),
    "report values": Kind(_json_of(REPORT), ("report",)),
    "journal bytes": Kind(_bytes_of(JOURNAL), ("journal",), (PARTIAL,)),
    "journal values": Kind(_json_of(JOURNAL), ("journal",), (PARTIAL,)),
    "text bytes": Kind(_any_bytes, ("text",), (TEXT, DATASET)),
    "text files": Kind(_files, ("text",), (TEXT, DATASET)),
}
NATIVES: dict[str, Kind] = {
    "native model": Kind(_model, ("load", "run"), (NATIVE,)),
    "native values": Kind(_json_of(CONFIG), ("load", "run"), (NATIVE,)),
    "native shards": Kind(_on_shard(change_header), ("load", "run"), (NATIVE,)),
    "report pages": Kind(_json_of(REPORT), ("page",)),
}
"""What needs transformers' own classes or draws plots, and takes long."""
