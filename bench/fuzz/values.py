"""Damage to bytes and to JSON: the parts of which the kinds of mutations are made."""

import copy
import json
from random import Random
from typing import Any

SCALARS: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 2**31, 2**40, 2**63, 2**64, 2**70, -(2**63),
    10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "../x", "/etc/passwd", "C:\\x", ".", "..", "x" * 100_000, "\x00", "\ud800", "\u202eabc",
    "a\x1b[2J", "\n", "F64", "U8", "uniform", "multi-binary", "export", "fx", "LlamaForCausalLM",
)  # fmt: skip
CONTAINERS: tuple[Any, ...] = ([], {}, [1], [[]], {"a": 1}, {"": None}, [None] * 1000, [0] * 8)
DEEP = "<deep>"
"""Stands where the text gets a deep nest, which the JSON module itself would not write."""


def hostile(chance: Random) -> Any:
    """A value that no field expects."""
    return copy.deepcopy(chance.choice(chance.choice((SCALARS, SCALARS, CONTAINERS, (DEEP,)))))


def near(value: Any, chance: Random) -> Any:
    """A value of the same type, wrong by little or by much."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([value + 1, value - 1, -value, value * 2, value << 20, value << 40])
    if isinstance(value, float):
        return chance.choice([-value, value * 1e300, float("nan"), 0.0])
    if isinstance(value, str):
        return chance.choice([value + "x", value[:-1], value.upper(), value * 2, f"../{value}"])
    if isinstance(value, list) and value:
        return chance.choice([value[:-1], value * 2, value[::-1], [*value, hostile(chance)]])
    return hostile(chance)


def change_one(data: Any, chance: Random) -> Any:
    """Replace, remove, repeat, rename or move one value anywhere below ``data``."""
    place = _place(data, chance)
    if place is None:
        return hostile(chance)
    holder, key = place
    match chance.choice(["hostile", "near", "near", "remove", "repeat", "rename", "move", "add"]):
        case "hostile":
            holder[key] = hostile(chance)
        case "near":
            holder[key] = near(holder[key], chance)
        case "remove":
            del holder[key]
        case "repeat" if isinstance(holder, list):
            holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        case "rename" if isinstance(holder, dict):
            holder[str(chance.choice([f"{key}x", key.upper(), "", "../x"]))] = holder.pop(key)
        case "add" if isinstance(holder, dict):
            holder[str(chance.choice(SCALARS))] = hostile(chance)
        case _:
            other = _place(data, chance)
            assert other is not None
            holder[key] = copy.deepcopy(other[0][other[1]])
    return data


def _place(data: Any, chance: Random) -> tuple[Any, Any] | None:
    """Walk down at random: the container of a value, and its key there."""
    found = None
    while isinstance(data, dict | list) and data:
        key = chance.choice(list(data)) if isinstance(data, dict) else chance.randrange(len(data))
        found = data, key
        data = data[key]
        if chance.random() < 0.2:
            break
    return found


def json_bytes(data: Any, chance: Random) -> bytes:
    """JSON text, now and then with a name twice or a nest of brackets."""
    text = json.dumps(data)
    levels = chance.choice([10, 1000, 100_000])
    text = text.replace(json.dumps(DEEP), "[" * levels + "]" * levels)
    if chance.random() < 0.1:
        places = [place for place, letter in enumerate(text) if letter == "{"]
        if places:
            place = chance.choice(places) + 1
            name = chance.choice(["rows", "layers", "codec", "dtype", "weight_map", "x"])
            comma = "" if text[place : place + 1] == "}" else ","
            text = (
                f'{text[:place]}"{name}": {json.dumps(chance.choice(SCALARS))}{comma}{text[place:]}'
            )
    return text.encode()


def change_json(raw: bytes, chance: Random) -> bytes:
    """One to three changes to the values of a JSON text."""
    data = json.loads(raw)
    for _ in range(chance.choice([1, 1, 2, 3])):
        data = change_one(data, chance)
    return json_bytes(data, chance)


def change_bytes(raw: bytes, chance: Random) -> bytes:
    """Cut short, flip bits, write over, put in, take out, or repeat."""
    data, size = bytearray(raw), max(1, len(raw))
    place = chance.choice([chance.randrange(size), chance.randrange(min(size, 200))])
    length = chance.choice([1, 1, 2, 8, 64, 1000])
    match chance.choice(["cut", "flip", "flips", "write", "insert", "remove", "repeat", "append"]):
        case "cut":
            del data[place:]
        case "flip":
            data[place : place + 1] = bytes(b ^ 1 << chance.randrange(8) for b in data[place:][:1])
        case "flips":
            for _ in range(20):
                spot = chance.randrange(size)
                data[spot : spot + 1] = chance.randbytes(1)
        case "write":
            data[place : place + length] = chance.choice([b"\0", b"\xff", b"{"]) * length
        case "insert":
            data[place:place] = chance.randbytes(length)
        case "remove":
            del data[place : place + length]
        case "repeat":
            data[place:place] = data[place : place + length]
        case _:
            data += chance.randbytes(length)
    return bytes(data)
