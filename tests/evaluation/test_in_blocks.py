"""Masked text behind clean blocks: one forward gives what a forward for each block gives."""

import pytest
import torch
from torch import Tensor, nn

from qdc.evaluation.evaluate import evaluate
from qdc.evaluation.in_blocks import at_once, block_by_block
from qdc.evaluation.masked_loss import ratio_mask
from qdc.runtime.load import load_checkpoint
from tests.support.families import CASES, MASK, write_family

LENGTH = 21
"""Not whole blocks."""


class Plain:
    """A model that is no module, so that nobody can ask it about windows."""

    def __init__(self, module: nn.Module) -> None:
        self.module_of_its_own = module
        self.logits_shift = int(getattr(module, "logits_shift", 0))

    def __call__(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.module_of_its_own(tokens)
        return found


@pytest.fixture(scope="module", params=["sdar", "fast-dllm", "llada2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = write_family(tmp_path_factory.mktemp("blocks"), CASES[name])
    return load_checkpoint(folder, "cpu", torch.float32)


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return torch.randint(2, 2048, (3, LENGTH), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_one_forward_equals_one_for_each_block(name: str, model: nn.Module, clean: Tensor) -> None:
    block = CASES[name].block
    assert block is not None
    hidden = ratio_mask(3, LENGTH, 0.5, 0)
    noisy = clean.masked_fill(hidden, MASK)
    shift = int(getattr(model, "logits_shift", 0))
    read = block_by_block(block)
    found, one_by_one = (read(m, noisy, clean, hidden, shift) for m in (model, Plain(model)))
    torch.testing.assert_close(found, one_by_one, atol=1e-5, rtol=0)
    for number, (row, place) in enumerate(hidden.nonzero().tolist()):
        first = place // block * block
        text = torch.cat((clean[row, :first], noisy[row, first : first + block]))[None]
        due = model(text)[0, max(0, place - shift)]
        torch.testing.assert_close(found[number], due, atol=1e-5, rtol=0)
    seen = at_once(model, noisy, clean, hidden, shift)
    assert float((seen - found).abs().max()) > 0.01


def test_the_evaluation_says_how_it_has_read(name: str, model: nn.Module, clean: Tensor) -> None:
    block = CASES[name].block
    given = {"ratios": (0.5,), "seeds": (0,), "bound_samples": 2}
    blocks = evaluate(model, clean, MASK, **given, behind_clean=block)  # type: ignore[arg-type]
    everywhere = evaluate(model, clean, MASK, **given)  # type: ignore[arg-type]
    assert (blocks.behind_clean, everywhere.behind_clean) == (block, None)
    assert blocks.ratios[0].tokens == everywhere.ratios[0].tokens
    assert blocks.ratios[0].loss != everywhere.ratios[0].loss
    assert blocks.bound != everywhere.bound
