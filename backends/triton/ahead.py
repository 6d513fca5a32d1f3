"""Compile kernels for GPUs that are not there, and read what the compiler made of them.

``python -m qdc.backends.triton.ahead`` prints the table of docs/kernels.md, and with ``--json``
the same for bf16 and fp16, rings and rotations for bf16 alone. Registers and shared
memory are the compiler's own numbers; instructions are counted in the machine code, those of a sign
in the loop over pairs, which is where a linear spends its time.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from pydantic import BaseModel, ConfigDict
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qdc.errors import QdcError

from . import binary, hadamard, trellis, uniform
from .forms import Form, forms
from .support import INTERPRETER, interpreting
from .variants import REGISTERS

ARCHITECTURES = (80, 90)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ALIGNED = (
    "columns", "x_stride", "padded_rows", "outputs", "tile_words", "words", "width", "in_stride",
    "out_stride",
)  # fmt: skip
"""Numbers that are taken to be multiples of 16, as they are in models."""
KINDS = ("LOP3", "SHF", "PRMT", "IMAD", "HFMA2", "HMUL2", "FFMA", "LDS", "STS", "HMMA", "HGMMA")
"""Instructions that the report names; ``LDL`` and ``STL``, spills, have their own number."""


class Compiled(BaseModel):
    """What ptxas reports of one kernel, and what its inner loop holds."""

    model_config = ConfigDict(frozen=True)

    kernel: str
    dtype: str
    """Of the activations."""
    architecture: int
    registers: int
    shared: int
    """Bytes of shared memory of a program."""
    spilled: int
    """Instructions that store or load what did not find a register."""
    mixed: int
    """Registers whose two signs are not shifted by one constant, which would make one wrong."""
    instructions: dict[str, int]
    """Of the inner loop of a warp, by opcode; empty where there is no loop."""
    per_sign: float | None
    """Instructions of the loop for each sign of a thread."""


def compile_form(form: Form, architecture: int) -> Compiled:
    """Compile one kernel for ``sm_{architecture}``; needs no GPU.

    Raises:
        QdcError: the interpreter was asked for, in which kernels are not compiled.
    """
    if interpreting():
        raise QdcError(
            "kernels cannot be compiled ahead of time in the interpreter",
            help=f"unset {INTERPRETER}",
        )
    modules = (binary, uniform, trellis, hadamard)
    [function] = [getattr(one, form.kernel) for one in modules if hasattr(one, form.kernel)]
    names = function.arg_names
    signature = {name: _type(name, form) for name in names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(names)
        if signature[name].startswith("*") or name in ALIGNED
    }
    # At run time a 1 would become a constant, and another kernel than the one compiled here.
    fixed = {parameter.name for parameter in function.params if parameter.do_not_specialize}
    assert {name for name in names if signature[name] == "i32"} <= fixed | set(ALIGNED)
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=form.constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": form.warps,
            "num_stages": form.stages,
            "enable_fp_fusion": True,
            "maxnreg": REGISTERS,
        },
    )
    registers, listing = _inspect(made.asm["cubin"])
    loop = inner_loop(listing)
    signs = form.signs / (32 * form.warps)
    return Compiled(
        kernel=form.name,
        dtype=form.dtype,
        architecture=architecture,
        registers=registers,
        shared=int(made.metadata.shared),
        mixed=_mixed(made.asm["llir"]),
        spilled=len(re.findall(r"\b(?:LDL|STL)\b", listing)),
        instructions=dict(loop),
        per_sign=sum(loop.values()) / signs if form.signs and loop else None,
    )


def _mixed(code: str) -> int:
    """Signs in LLVM's code whose shift, the second operand, is no constant for both halves."""
    operands = re.findall(r"lop3\.b32.*\(<2 x i16> \S+, <2 x i16> (\w+)", code)
    return sum(operand not in ("splat", "zeroinitializer") for operand in operands)


def compile_all(
    chosen: Sequence[Form], architectures: Sequence[int] = ARCHITECTURES, threads: int = 2
) -> list[Compiled]:
    """Compile forms for architectures, in the order given."""
    work = [(form, arch) for form in chosen for arch in architectures]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: compile_form(*job), work))


def inner_loop(listing: str) -> Counter[str]:
    """Opcodes of the largest loop of a SASS listing, which is the loop over pairs."""
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    best: Counter[str] = Counter()
    for line in listing.splitlines():
        label = re.match(r"^(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(opcodes)
            continue
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[\w.]*(.*)", line)
        if not found:
            continue
        opcodes.append(found[1])
        target = re.search(r"\.L_\w+", found[2]) if found[1] == "BRA" else None
        start = labels.get(target[0]) if target else None
        # A branch to itself ends every program.
        if start is not None and len(opcodes) - start > max(1, best.total()):
            best = Counter(opcodes[start:])
    return best


def _type(name: str, form: Form) -> str:
    if name in form.constants:
        return "constexpr"
    if not name.endswith("_pointer"):
        return "fp32" if name == "factor" else "i32"
    fixed = {
        "pair_planes": "*i16",
        "single_planes": "*u8",
        "codes": "*u8",
        "row_scale": "*fp16",
        "scale": "*fp16",
        "offset": "*fp32",
        "pairs": "*i32",
        "singles": "*i32",
        "blocks": "*i32",
        "tiles": "*i32",
        "partial": "*fp32",
        "arrivals": "*i32",
        "ids": "*i64",
        "signs": "*i8",
    }
    if form.kernel == "binary_expand":
        fixed["col_scale"] = "*fp16"
    if form.kernel.startswith("trellis"):
        fixed |= {"codes": "*i16", "scale": "*fp32", "z": "*fp32"}
    if form.kernel == "rotate" and not form.constants["BEFORE"]:
        fixed["in"] = "*fp32"
    if form.kernel == "trellis_expand":
        fixed["table"] = "*fp32"
    return fixed.get(name.removesuffix("_pointer"), "*" + form.dtype)


def _inspect(cubin: bytes) -> tuple[int, str]:
    """Registers of a thread, and the SASS listing."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(path))
        listing = _tool("nvdisasm", "-c", str(path))
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return int(registers[1]), listing


def _tool(name: str, *arguments: str) -> str:
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(found: Sequence[Compiled]) -> str:
    """A Markdown table of kernels."""
    lines = [
        "| kernel | sm | registers | shared bytes | spilled | instructions a sign | loop |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        loop = " ".join(f"{kind} {n}" for kind in KINDS if (n := one.instructions.get(kind)))
        rate = "" if one.per_sign is None else f"{one.per_sign:.2f}"
        lines.append(
            f"| `{one.kernel}` | {one.architecture} | {one.registers} | {one.shared:,} "
            f"| {one.spilled} | {rate} | {loop} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Compile every kernel of the tables, and print them as Markdown or as JSON."""
    if list(arguments) not in ([], ["--json"]):
        raise SystemExit("usage: python -m qdc.backends.triton.ahead [--json]")
    dtypes = ("bf16", "fp16") if arguments else ("bf16",)
    found = compile_all(list(forms(dtypes)))
    text = json.dumps([one.model_dump() for one in found], indent=1) if arguments else table(found)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
