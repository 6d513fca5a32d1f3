"""Linears that read one value become one call; everything else stays what it was."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from qdc.models.families import FAMILIES, Families
from qdc.models.family import Family
from qdc.models.layers import Attention, Rotary
from qdc.models.names import Names
from qdc.runtime.joining import join_stages

SMALL = {"vocab_size": 64, "mask_token_id": 1}
LLADA = {
    "architectures": ["LLaDAModelLM"], "d_model": 32, "n_layers": 2, "n_heads": 2,
    "n_kv_heads": 1, "mlp_hidden_size": 48, "embedding_size": 64, "max_sequence_length": 16,
    **SMALL,
}  # fmt: skip
SHARED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **SMALL}
DREAM = {
    "architectures": ["DreamModel"], "num_key_value_heads": 1, "intermediate_size": 48, **SHARED,
}  # fmt: skip
MOE = {
    "architectures": ["LLaDAMoEModelLM"], "expert_intermediate_size": 24, "num_experts": 4,
    "num_experts_per_tok": 2, **SHARED,
}  # fmt: skip
NESTED = Family(
    name="nested",
    architectures=("Nested",),
    names=Names(
        attention_norm="a.in.norm", query="a.in.q_proj", key="a.in.k_proj", value="a.in.v_proj",
        query_norm="a.in.n.q", key_norm="a.in.n.k", output="a.in.n.out", feed_forward_norm="a.norm",
        gate="f.1.gate_proj", up="f.1.up_proj", down="f.down_proj",
    ),
    defaults={"head_norms": True},
)  # fmt: skip
"""Its attention holds what others compute with; its gate stands where nothing is computed."""
NEST = {**DREAM, "architectures": ["Nested"]}
KNOWN = Families((*FAMILIES, NESTED))
TOKENS = torch.arange(12).reshape(2, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


class Joined(nn.Module):
    """The plain weights of several linears, one under the other."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]))
        biases: list[Tensor] = [linear.bias for linear in linears]
        self.bias = nn.Parameter(torch.cat(biases)) if biases[0] is not None else None
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def model(config: dict[str, object]) -> nn.Module:
    module = KNOWN.build(config)[0].to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return module


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in module.named_modules() if type(part) is nn.Linear}


def stages_of(module: nn.Module) -> list[list[str]]:
    """Every pair and triple that the families give as a stage, by the names of the layers."""
    found = []
    for trio in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("ff_proj", "up_proj")):
        for path in linears(module):
            holder = path.removesuffix(trio[0])
            names = [holder + name for name in trio]
            if path.endswith("." + trio[0]) and all(name in linears(module) for name in names):
                found.append(names)
    return found


def join(module: nn.Module, stages: Sequence[Sequence[str]]) -> frozenset[str]:
    known = linears(module)
    return join_stages(
        module, stages, known, lambda paths: True,
        lambda paths: Joined([known[path] for path in paths]),
    )  # fmt: skip


@pytest.mark.parametrize(("config", "calls"), [(LLADA, 4), (DREAM, 4), (MOE, 10)])
def test_the_joined_model_computes_the_same(config: dict[str, object], calls: int) -> None:
    module = model(config)
    wanted = module(TOKENS, MASK)
    stages = stages_of(module)
    assert join(module, stages) == {path for stage in stages for path in stage}
    assert sum(isinstance(part, Joined) for part in module.modules()) == calls == len(stages)
    torch.testing.assert_close(module(TOKENS, MASK), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(TOKENS), model(config)(TOKENS), rtol=1e-4, atol=1e-5)


def test_what_computes_elsewhere_stays_in_its_place() -> None:
    module = model(NEST)
    wanted, before = module(TOKENS, MASK), dict(module.named_modules())
    gone = join(module, stages_of(module))
    assert {path.rpartition(".")[2] for path in gone} == {"q_proj", "k_proj", "v_proj"}
    assert set(before) - set(dict(module.named_modules())) == gone
    torch.testing.assert_close(module(TOKENS, MASK), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [LLADA, DREAM, MOE])
def test_leaves_attributes_and_states_survive(config: dict[str, object]) -> None:
    module = model(config)
    kept = {
        name: part for name, part in module.named_modules() if isinstance(part, Attention | Rotary)
    }
    join(module, stages_of(module))
    assert {n: p for n, p in module.named_modules() if isinstance(p, Attention | Rotary)} == kept
    assert type(module) is type(model(config))
    assert (module.sizes, module.layout) == (model(config).sizes, model(config).layout)
    assert getattr(module, "logits_shift", 0) == (config is DREAM)
    assert not any(part.training for part in module.modules() if not isinstance(part, Joined))
    again = copy.deepcopy(module)
    for parameter in again.parameters():
        parameter.zero_()
    again.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(again(TOKENS), module(TOKENS))
    assert module.to(torch.bfloat16)(TOKENS).dtype == torch.bfloat16


def test_the_code_decides_and_not_the_artifact() -> None:
    module = model(LLADA)
    block = "model.transformer.blocks.0."
    wanted = module(TOKENS)
    lies = [
        [block + "q_proj", block + "attn_out"],
        [block + "ff_proj", "model.transformer.blocks.1.ff_proj"],
        [block + "q_proj", "nowhere", block + "q_proj", block],
        ["model.transformer.wte", "model.transformer.ff_out"],
        [block + "q_proj", block + "ff_proj", block + "k_proj", block + "up_proj"],
        [block + "q_proj", block + "v_proj"],
    ]
    gone = join(module, lies)
    assert gone == {block + name for name in ("q_proj", "k_proj", "ff_proj", "up_proj")}
    torch.testing.assert_close(module(TOKENS), wanted, rtol=1e-4, atol=1e-5)


def test_what_the_backend_cannot_join_stays_apart() -> None:
    module = model(LLADA)
    known, stages = linears(module), stages_of(module)
    join_stages(
        module, stages, known,
        lambda paths: not any(path.endswith(("q_proj", "ff_proj")) for path in paths),
        lambda paths: Joined([known[path] for path in paths]),
    )  # fmt: skip
    joined = {name for name, part in module.named_modules() if type(part) is Joined}
    assert {name.rpartition(".")[2] for name in joined} == {"k_proj_v_proj"}
