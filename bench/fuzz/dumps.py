"""Damage to IR dumps: graphs that break every promise, and msgpack that promises too much."""

import copy
from pathlib import Path
from random import Random
from typing import Any

import msgpack

from .values import DEEP, change_one

BOMBS = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20),
    b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20), b"\xdc\xff\xff" * 1000,
    b"\x81\xa6format" + b"\xd9\xff" * 1000,
    b"\xdd\x00\x10\x00\x00" + b"\xd4\x01\x00" * (1 << 20),
)  # fmt: skip


def change_graph(path: Path, chance: Random) -> None:
    """Change one to three values, or break the graph in a way that a graph can be broken."""
    dump = msgpack.unpackb(path.read_bytes())
    structure, notes = dump["structure"], dump["annotations"]
    nodes, regions = structure["nodes"], structure["regions"]
    node, other, note = chance.choice(nodes), chance.choice(nodes), chance.choice(notes)
    match chance.randrange(16):
        case 0:
            node["inputs"] = [other["name"]]
        case 1:
            node["inputs"] = [node["name"]] * chance.choice([1, 100_000])
        case 2:
            node["name"] = chance.choice(["../../x", other["name"], "x" * 10_000, "", "a\x1b[2J"])
        case 3:
            node["op"] = chance.choice(["linear", "embedding", "input", "os.system", ""])
        case 4:
            nodes.extend(copy.deepcopy(nodes[: chance.choice([1, len(nodes)])]))
        case 5:
            chance.shuffle(nodes)
        case 6:
            nodes.extend({**copy.deepcopy(node), "name": f"n{i}"} for i in range(3000))
        case 7:
            regions.extend(copy.deepcopy(regions) * chance.choice([1, 300]))
        case 8:
            stage = chance.choice(chance.choice(regions)["stages"])
            stage["layers"] = chance.choice([[], ["ghost"], stage["layers"] * 1000, [node["name"]]])
        case 9:
            note[0] = chance.choice([other["name"], "ghost", "", node["name"]])
        case 10:
            note[1] = chance.choice(["orders", "packed", "kept", "moment", "future", "", "A", "?x"])
        case 11:
            note[2] = chance.choice([chance.choice(notes)[2], {}, {"a": [[[[]]]] * 100}])
        case 12:
            notes.extend(copy.deepcopy(notes) * chance.choice([1, 20]))
        case 13:
            for parameter in node["parameters"]:
                parameter["shape"] = chance.choice([[2**40, 2**40], [0, 0], [], [1] * 9, ["B", 4]])
        case _:
            for _ in range(chance.choice([1, 2, 3])):
                dump = change_one(dump, chance)
    path.write_bytes(_packed(dump, chance))


def write_bomb(path: Path, chance: Random) -> None:
    """A few bytes that announce many, or many small values."""
    bomb = chance.choice(BOMBS)
    if chance.random() < 0.5:
        path.write_bytes(bomb)
        return
    raw = path.read_bytes()
    key = chance.choice([b"\xa9structure", b"\xabannotations", b"\xa5nodes", b"\xa5after"])
    place = raw.find(key) + len(key)
    path.write_bytes(raw[:place] + bomb + raw[place:])


def _packed(data: Any, chance: Random) -> bytes:
    try:
        packed: bytes = msgpack.packb(data, default=lambda value: str(value)[:100])
    except (OverflowError, ValueError, UnicodeEncodeError):
        packed = msgpack.packb(_writable(data, chance))
    levels = chance.choice([10, 600, 100_000])
    return packed.replace(msgpack.packb(DEEP), b"\x91" * levels + b"\xc0")


def _writable(data: Any, chance: Random) -> Any:
    """The same without what msgpack cannot say: huge integers and halves of surrogate pairs."""
    if isinstance(data, dict):
        return {_writable(key, chance): _writable(value, chance) for key, value in data.items()}
    if isinstance(data, list):
        return [_writable(value, chance) for value in data]
    try:
        msgpack.packb(data)
    except (OverflowError, ValueError, UnicodeEncodeError):
        return chance.choice([2**64 - 1, -(2**63), b"\xff"])
    return data
