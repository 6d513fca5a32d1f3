"""Damage to safetensors files: headers that lie, and sound files with the wrong tensors."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .values import change_one, hostile, json_bytes

DTYPES = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F4", "I16", "U16", "F16", "BF16", "I32",
          "U32", "F32", "C64", "F64", "I64", "U64", "X9")  # fmt: skip
HUGE: tuple[list[int], ...] = (
    [2**40],
    [2**40, 2**40],
    [2**63],
    [2**32, 2**32],
    [0],
    [],
    [1] * 100,
    [-1],
    [2**61, 8],
)
LENGTHS = (0, 1, 7, 100, 10**8, 10**8 + 1, 2**31, 2**40, 2**62, 2**63, 2**64 - 1, 2**64 - 8)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A file whose first eight bytes may give another length of the header."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def change_header(path: Path, chance: Random) -> None:
    """One lie about one tensor, about all, or about the header itself."""
    header, data = split(path.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    name, other = chance.choice(names), chance.choice(names)
    entry, length = header[name], None
    match chance.randrange(14):
        case 0:
            entry["shape"] = chance.choice(HUGE)
        case 1:
            entry["dtype"] = chance.choice(DTYPES)
        case 2:
            entry["data_offsets"] = chance.choice([[0, 0], [0, len(data)], [8, 0], [2**63, 2**64]])
        case 3:
            entry["data_offsets"] = header[other]["data_offsets"]
        case 4:
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [begin + chance.randrange(-9, 9), end + chance.randrange(-9, 9)]
        case 5:
            del header[name]
        case 6:
            header[f"{name}{chance.choice(['x', '/../x', chr(0), chr(0x202E)])}"] = header.pop(name)
        case 7:
            header["x"] = {"dtype": "U8", "shape": [0], "data_offsets": [len(data), len(data)]}
        case 8:
            header, data = {}, chance.choice([b"", data])
        case 9:
            header["__metadata__"] = hostile(chance)
        case 10:
            length = chance.choice([*LENGTHS, len(json.dumps(header)) - 1])
        case 11:
            header[name], header[other] = header[other], header[name]
        case 12:
            shape = entry["shape"]
            entry["shape"] = chance.choice([shape[::-1], [*shape, 1], [1, *shape], shape[1:]])
        case _:
            header = change_one(header, chance)
    path.write_bytes(joined(json_bytes(header, chance), data, length))


def change_tensors(path: Path, chance: Random) -> None:
    """A sound file in which one tensor has another dtype, shape, value, name, or is gone."""
    tensors = load_file(path)
    name = chance.choice(list(tensors))
    tensor = tensors[name]
    match chance.randrange(7):
        case 0:
            kinds = [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]
            tensors[name] = tensor.to(chance.choice(kinds))
        case 1:
            tensors[name] = chance.choice([tensor[:-1], tensor[None], tensor.flatten(), tensor[:0]])
        case 2 if tensor.is_floating_point():
            value = chance.choice([float("nan"), float("inf"), -float("inf"), 0.0, 6e4])
            tensors[name] = torch.full_like(tensor, value)
        case 3:
            tensors[chance.choice(["x", "../x", f"{name}.weight", "é"])] = tensors.pop(name)
        case 4:
            del tensors[name]
        case 5:
            tensors["x" * chance.choice([1, 10_000])] = torch.zeros(3)
        case _:
            noise = torch.frombuffer(
                bytearray(chance.randbytes(tensor.nbytes + 8)), dtype=torch.uint8
            )
            tensors[name] = noise[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
