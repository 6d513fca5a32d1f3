"""What a GPU would run: the PTX fragments do what the interpreter does, and all kernels compile."""

import json
import os
import random
import re
import subprocess
import sys

import pytest

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import signs

WORD = 0xFFFFFFFF
ALTERNATING = """
import json
from qdc.backends.triton.ahead import ARCHITECTURES, compile_form
from qdc.backends.triton.forms import forms

found = [
    compile_form(form, ARCHITECTURES[(number + part) % 2]).model_dump()
    for part, dtype in enumerate(("bf16", "fp16"))
    for number, form in enumerate(forms((dtype,)))
    if dtype == "bf16" or form.name.startswith("binary-planes")
    if "x128" not in form.name and "trellis-4" not in form.name
]
print(json.dumps(found))
"""
"""Every kind for one architecture with bf16; planes for the other one with fp16 as well.

The largest tiles take longest, and are compiled by the slow ones alone.
"""


def run_ptx(fragment: str, inputs: dict[str, int], outputs: tuple[str, ...]) -> list[int]:
    """Evaluate the few instructions that the fragments are made of."""
    values = dict(inputs)

    def read(name: str) -> int:
        return values[name] if name in values else int(name, 0)

    for line in fragment.strip("{} ").split(";"):
        text = line.strip()
        if not text or text.startswith(".reg"):
            continue
        name, _, rest = text.partition(" ")
        target, *given = [word.strip() for word in rest.split(",")]
        read_all = [read(word) for word in given]
        if name == "shf.l.wrap.b32":
            low, high, count = read_all
            count &= 31
            values[target] = ((high << 32 | low) << count >> 32) & WORD
        elif name == "lop3.b32":
            a, b, c, table = read_all
            values[target] = sum(
                ((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1))) & 1) << i
                for i in range(32)
            )
        elif name == "prmt.b32":
            a, b, selector = read_all
            pool = [(b << 32 | a) >> 8 * i & 255 for i in range(8)]
            values[target] = sum(pool[selector >> 4 * i & 7] << 8 * i for i in range(4))
        else:
            pytest.fail(f"the evaluator does not know {name}")
    return [values[name] for name in outputs]


def test_spreading_bytes() -> None:
    for seed in range(200):
        word = random.Random(seed).getrandbits(32)
        low, high = run_ptx(signs.SPREAD.value, {"$2": word}, ("$0", "$1"))
        parts = [word >> 8 * i & 255 for i in range(4)]
        assert [low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16] == parts


@pytest.mark.parametrize("bit", range(8))
def test_signs_of_scales(bit: int) -> None:
    shift = 15 - bit
    for seed in range(100):
        draw = random.Random(seed)
        one, two = draw.getrandbits(8), draw.getrandbits(8)
        scales = draw.getrandbits(32)
        inputs = {"$1": two << 16 | one, "$2": shift << 16 | shift, "$3": scales}
        (found,) = run_ptx(signs.SIGN.value, inputs, ("$0",))
        flips = (one >> bit & 1 ^ 1) << 15 | (two >> bit & 1 ^ 1) << 31
        assert found == scales ^ flips


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("-c", ALTERNATING), id="alternating"),
        pytest.param(
            ("-m", "qdc.backends.triton.ahead", "--json"), id="all", marks=pytest.mark.slow
        ),
    ],
)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, object]]:
    cache = tmp_path_factory.mktemp("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *request.param],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_every_kernel_compiles(
    compiled: list[dict[str, object]], request: pytest.FixtureRequest
) -> None:
    seen = {(one["kernel"], one["architecture"]) for one in compiled}
    names = {str(name) for name, _ in seen}
    assert {arch for _, arch in seen} == {80, 90}
    if "all" in request.node.callspec.id:
        assert seen == {(name, arch) for name in names for arch in (80, 90)}
    kinds = {re.split(r"-(?=\d)|-planes|-tile", name)[0] for name in names}
    assert {"binary", "uniform", "binary-expand", "uniform-expand", "uniform-embedding"} <= kinds
    assert {"trellis", "trellis-expand", "rotate-inputs", "rotate-outputs"} <= kinds


def test_nothing_spills(compiled: list[dict[str, object]]) -> None:
    assert {str(one["kernel"]): one["spilled"] for one in compiled if one["spilled"]} == {}


def test_two_signs_of_a_register_have_one_shift(compiled: list[dict[str, object]]) -> None:
    assert {str(one["kernel"]): one["mixed"] for one in compiled if one["mixed"]} == {}


def test_a_sign_costs_few_instructions(compiled: list[dict[str, object]]) -> None:
    rates = {
        str(one["architecture"]): one["per_sign"]
        for one in compiled
        if str(one["kernel"]).startswith("binary-planes")
    }
    assert set(rates) == {"80", "90"}
    for rate in rates.values():
        assert isinstance(rate, float)
        assert 1 < rate < 3
