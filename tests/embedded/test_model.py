"""The embedded model is what its card says: a real, small, trained LLaDA."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import qdc
from qdc.evaluation.evaluate import evaluate, held_out_windows
from qdc.ir.annotations import Orders
from qdc.ir.dump import read
from qdc.pipeline.registry import standard_registry
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer

MODEL = Path(__file__).parents[2] / "examples" / "tiny-llada"
RECORD = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
CONFIG = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """Return the uncompiled model."""
    return qdc.load_original(MODEL)


def test_is_small_enough_to_ship_and_large_enough_to_judge_by() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 14_000_000
    assert CONFIG["d_model"] >= 256
    assert CONFIG["mlp_hidden_size"] >= 768
    assert CONFIG["n_layers"] >= 6
    assert CONFIG["d_model"] % 128 == CONFIG["mlp_hidden_size"] % 128 == 0


def test_has_learned(original: nn.Module) -> None:
    """Held-out loss at ratio 0.15 is at most 60 % of unigram, and more context helps."""
    encode = encoder(load_tokenizer(MODEL))
    documents = read_text(MODEL / "heldout.jsonl").documents
    windows = held_out_windows(documents, encode, CONFIG["max_sequence_length"], 16)
    found = evaluate(original, windows, CONFIG["mask_token_id"], seeds=(0,), bound_samples=1)
    losses = [row.loss for row in found.ratios]
    assert losses[0] <= 0.6 * found.unigram
    assert losses[0] < losses[1] < losses[2] < found.unigram + 0.5


def test_card_and_record_agree() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for loss in RECORD["held_out_cross_entropy"].values():
        assert f"{loss:.3f}" in card
    assert f"{sum(run['steps'] for run in RECORD['runs']):,} of" in card
    assert RECORD["held_out_cross_entropy"]["0.15"] <= 0.6 * RECORD["unigram_cross_entropy"]


def test_calibration_text_holds_nothing_of_what_is_evaluated() -> None:
    embedded = [json.loads(line)["name"] for line in _lines("qdc/data/calibration.jsonl")]
    held_out = [json.loads(line)["name"] for line in _lines("examples/tiny-llada/heldout.jsonl")]
    assert set(held_out) <= set(RECORD["held_out_files"])
    assert not set(embedded) & set(RECORD["held_out_files"])


def test_padding_does_not_change_what_is_visible(original: nn.Module) -> None:
    tokens = torch.randint(2, 2048, (1, 24), generator=torch.Generator().manual_seed(0))
    padded = torch.cat((tokens, torch.zeros(1, 8, dtype=torch.int64)), dim=1)
    mask = torch.arange(32)[None] < 24
    torch.testing.assert_close(
        original(padded, mask)[:, :24], original(tokens), atol=1e-4, rtol=1e-4
    )


def _lines(path: str) -> list[str]:
    return (MODEL.parents[1] / path).read_text(encoding="utf-8").splitlines()


def test_allocation_moves_blocks_of_the_widest_layers(tmp_path: Path) -> None:
    """At the default ratio six blocks are too few to move one; at 0.2 one goes up, one down."""
    qdc.compile(
        MODEL,
        "stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0.2},daq-lower),pack",
        out=tmp_path / "out",
        samples=8,
        length=64,
        stop_after="abmp-allocate",
    )
    [dump] = (tmp_path / "out-dumps").glob("*.qdc")
    graph = read(dump, standard_registry().annotations())
    layers = list(graph.layers())
    assert len(layers) == 7 * CONFIG["n_layers"]
    for layer in layers:
        mixed = [1, 2, 2, 2, 2, 3] if layer.name.endswith(".ff_out") else [2, 2]
        assert sorted(graph.require(layer.name, Orders).blocks) == mixed
