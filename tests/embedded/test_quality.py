"""What compiling costs on the embedded model, in held-out masked cross-entropy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

import qdc
from qdc.evaluation.evaluate import Comparison, compare, held_out_windows
from qdc.evaluation.infill import infill, parse_gaps
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.embedded import SAMPLES, embedded_artifact

MODEL = Path(__file__).parents[2] / "examples" / "tiny-llada"
MASK = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["mask_token_id"]
Compiled = Callable[[str], nn.Module]
HALF = 0.5


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compile once for each pipeline, and load the artifact."""
    models: dict[str, nn.Module] = {}

    def get(passes: str) -> nn.Module:
        if passes == "default" and passes not in models:
            models[passes] = qdc.load(embedded_artifact(tmp_path_factory), backend="reference")
        elif passes not in models:
            out = tmp_path_factory.mktemp("artifact") / "out"
            report = qdc.compile(MODEL, passes, out=out, samples=SAMPLES, write_report=False)
            assert report.sign_bits == 2
            models[passes] = qdc.load(out, backend="reference")
        return models[passes]

    return get


@pytest.fixture(scope="module")
def compared(compiled: Compiled) -> Callable[[str], Comparison]:
    """Compare a pipeline's model with the original; all on the same masks."""
    encode = encoder(load_tokenizer(MODEL))
    windows: Tensor = held_out_windows(
        read_text(MODEL / "heldout.jsonl").documents, encode, 256, most=12
    )
    original = qdc.load_original(MODEL)
    found: dict[str, Comparison] = {}

    def get(passes: str) -> Comparison:
        if passes not in found:
            found[passes] = compare(
                compiled(passes),
                original,
                windows,
                MASK,
                ratios=(HALF,),
                seeds=(0,),
                bound_samples=1,
            )
        return found[passes]

    return get


def test_default_keeps_most_of_what_the_model_learned(
    compared: Callable[[str], Comparison],
) -> None:
    found = compared("default")
    gap = found.original.unigram - found.original.ratios[0].loss
    assert 0 < found.differences[0].rise < 0.25 * gap


@pytest.mark.slow
def test_round_to_nearest_is_clearly_worse(compared: Callable[[str], Comparison]) -> None:
    ours, theirs = compared("default").differences[0], compared("rtn").differences[0]
    noise = ours.standard_error + theirs.standard_error
    assert theirs.rise > 1.5 * ours.rise
    assert theirs.rise - ours.rise > 4 * noise


def test_compiled_model_fills_gaps_like_the_original(compiled: Compiled) -> None:
    """The easiest gap there is: a keyword that the context decides."""
    encode, tokenizer = encoder(load_tokenizer(MODEL)), load_tokenizer(MODEL)
    tokens, gaps = parse_gaps("import os\nfor i<mask> range(10):\n    pass\n", encode, MASK)
    for model in (qdc.load_original(MODEL), compiled("default")):
        filled = infill(model, tokens, gaps, MASK)
        assert tokenizer.decode(filled[gaps].tolist()) == " in"
