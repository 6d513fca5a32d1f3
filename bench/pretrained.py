"""Compile a pretrained encoder that transformers implements, and compare what it says.

    python -m bench.pretrained FOLDER --passes default

The folder holds config.json, tokenizer files and safetensors; nothing is fetched, and no code of
the folder is run. Sentences are lines of the embedded text, which is also calibrated on;
each is read as the model's own tokenizer writes it, special tokens included. A sentence's embedding
is the mean of the hidden states over its tokens, or of the logits where the model has a head.
Prints how many linears were mapped, sizes, the cosine of each embedding to the original's, and the
correlation of the two models' similarities over all pairs of sentences.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import qdc
from qdc.frontend.opening import open_model
from qdc.text.source import read_text
from qdc.text.tokenizer import load_tokenizer

SHORTEST = 40


def sentences(count: int) -> list[str]:
    """Lines of the embedded text, spread evenly over its documents."""
    lines = [
        line.strip()
        for document in read_text(None).documents
        for line in document.splitlines()
        if len(line.strip()) >= SHORTEST
    ]
    return lines[:: max(1, len(lines) // count)][:count]


@torch.no_grad()
def embeddings(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """``f32[sentences, width]``: the mean over the tokens of each sentence."""
    return torch.stack([model(torch.tensor([row]))[0].mean(0) for row in rows])


def similarities(vectors: Tensor) -> Tensor:
    """Cosines of all pairs."""
    unit = nn.functional.normalize(vectors, dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[first, second]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passes", default="default")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--sentences", type=int, default=64)
    options = parser.parse_args(arguments)
    _, program = open_model(options.folder, "export")
    inside = [n for n, m in program.module.named_modules() if isinstance(m, nn.Linear)]
    mapped = {node.path for node in program.graph.linears()}
    print(f"linears    {len(mapped & set(inside))} of {len(inside)} mapped")
    with tempfile.TemporaryDirectory() as scratch:
        report = qdc.compile(
            options.folder,
            options.passes,
            out=Path(scratch) / "out",
            samples=options.samples,
            length=options.length,
            frontend="export",
            write_report=False,
        )
        compiled = qdc.load(Path(scratch) / "out")
    original = qdc.load_original(options.folder, frontend="export")
    tokenizer = load_tokenizer(options.folder)
    rows = [tokenizer.encode(text) for text in sentences(options.sentences)]
    found, expected = embeddings(compiled, rows), embeddings(original, rows)
    cosine = nn.functional.cosine_similarity(found, expected, dim=-1)
    pairs = torch.stack([similarities(found), similarities(expected)])
    print(f"pipeline   {report.pipeline}")
    bits = f"{float(report.sign_bits):g} {report.bits_word}"
    print(f"quantized  {len(report.layers)} layers, {bits} a weight")
    print(f"effective  {report.effective_bits:.4f} bits a weight, every byte counted")
    for row in report.coverage:
        if row.status == "left out":
            print(f"left out   {row.tensor}: {row.reason}")
    print(f"bytes      {report.bytes_before:,} before, {report.bytes_after:,} after")
    print(f"seconds    {report.seconds:.1f}")
    print(f"cosine     mean {cosine.mean():.4f}, worst {cosine.min():.4f}, {len(rows)} sentences")
    print(f"pairs      correlation of similarities {torch.corrcoef(pairs)[0, 1]:.4f}")


if __name__ == "__main__":
    main()
