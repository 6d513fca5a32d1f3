"""Key names decide where modules stand, and nothing that they compute; bad tables are refused."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.frontend.tracer import trace
from qdc.models.decoder import BIASED, Decoder
from qdc.models.families import BUILT_IN, FAMILIES, Families
from qdc.models.family import Family
from qdc.models.names import Names, free_name
from qdc.models.parts import FeedForward, SelfAttention
from qdc.models.places import Place
from qdc.models.sizes import Fields, Sizes

DENSE = Sizes(
    width=12, blocks=2, heads=2, key_heads=1, head_width=4, hidden=10, vocabulary=9, mask_token=1,
    head_norms=True,
)  # fmt: skip
MIXED = DENSE.model_copy(
    update={
        "experts": 3, "experts_per_token": 2, "expert_hidden": 6, "dense_blocks": (0,),
        "normalized": True,
    }
)  # fmt: skip
FLAT = Names(
    embedding="a", blocks="b", final_norm="c", head="d", attention_norm="n1", query="q", key="k",
    value="v", query_norm="qn", key_norm="kn", output="o", feed_forward_norm="n2", gate="g", up="u",
    down="w", router="r", experts="x", expert_gate="g", expert_up="u", expert_down="w",
)  # fmt: skip
DEEP = Names(
    embedding="0.words", blocks="0.deep.stack", final_norm="0.deep.last", head="1.0.0",
    attention_norm="0", query="1.rotary.0", key="1.attention.0", value="1.v",
    query_norm="1.rotary.1", key_norm="1.attention.1", output="1.o.0", feed_forward_norm="ff.n",
    gate="ff.0.0", up="ff.0.1", down="ff.1", router="1.routing.r", experts="1.routing.e",
    expert_gate="p.g", expert_up="p.u", expert_down="w",
)  # fmt: skip


def family(names: Names, **given: Any) -> Family:
    return Family(
        name="odd", architectures=("Odd",), names=names, fields=Fields(experts="experts"), **given
    )


def tensor_names(names: Names, sizes: Sizes, *, biases: bool) -> list[str]:
    """Every tensor under these names, by the roles in one order whatever the names are."""
    found = [f"{path}.weight" for path in (names.embedding, names.final_norm, names.head)]
    for index in range(sizes.blocks):
        roles = ["attention_norm", *BIASED[:4], "query_norm", "key_norm", "feed_forward_norm"]
        roles += [] if sizes.is_sparse(index) else BIASED[4:]
        paths = [getattr(names, role) for role in roles]
        biased = [getattr(names, role) for role in BIASED]
        block = [f"{path}.weight" for path in paths]
        block += [f"{path}.bias" for path in biased if path in paths and biases]
        if sizes.is_sparse(index):
            inner = (names.expert_gate, names.expert_up, names.expert_down)
            block.append(f"{names.router}.weight")
            block += [f"{names.experts}.{e}.{leaf}.weight" for e in range(3) for leaf in inner]
        found += [f"{names.blocks}.{index}.{name}" for name in block]
    return found


def network(found: Family, sizes: Sizes) -> Decoder:
    """The decoder with weights that are random by role; it has no other tensors."""
    model = found.network(sizes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    random = {
        name: torch.randn(state[name].shape, generator=generator) / 2
        for name in tensor_names(found.names, sizes, biases=bool(found.biases))
    }
    model.load_state_dict(random, strict=True)
    return model


def logits(model: Decoder) -> Tensor:
    tokens = torch.randint(0, 9, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    found: Tensor = model(tokens, mask)
    return found


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("sizes", [DENSE, MIXED], ids=["dense", "experts"])
@pytest.mark.parametrize("names", [FLAT, DEEP], ids=["flat", "deep"])
def test_names_change_places_alone(names: Names, sizes: Sizes, early: bool) -> None:
    usual = network(family(Names(), biases=BIASED), sizes)
    other = network(family(names, biases=BIASED, rotates_early=early), sizes)
    assert torch.equal(logits(other), logits(usual))
    assert float(logits(usual).std()) > 0.1


@pytest.mark.parametrize("names", [Names(), FLAT, DEEP], ids=["usual", "flat", "deep"])
def test_a_graph_has_its_layers_under_these_names(names: Names) -> None:
    odd = family(names)
    with torch.device("meta"):
        model = odd.network(MIXED)
    graph = trace(model, odd.facts(MIXED)).graph
    dense = {f"{names.blocks}.0.{getattr(names, role)}" for role in BIASED}
    attention = {f"{names.blocks}.1.{getattr(names, role)}" for role in BIASED[:4]}
    inner = (names.expert_gate, names.expert_up, names.expert_down)
    experts = {f"{names.blocks}.1.{names.experts}.{e}.{leaf}" for e in range(3) for leaf in inner}
    assert {node.path for node in graph.layers()} == dense | attention | experts
    assert len(graph.regions) == 2


def test_a_module_that_holds_an_attention_has_code_of_its_own() -> None:
    """So that ``join_stages`` can trace it; one that holds both is computed with by the block."""
    modules = dict(family(Names()).network(DENSE).named_modules())
    assert type(modules["model.layers.0.self_attn"]) is SelfAttention
    assert type(modules["model.layers.0.mlp"]) is FeedForward
    both = {role: f"core.{role}" for role in (*BIASED, "query_norm", "key_norm")}
    modules = dict(family(Names(**both)).network(DENSE).named_modules())
    assert type(modules["model.layers.0.core"]) is Place
    same = network(family(Names(**both)), DENSE), network(family(Names()), DENSE)
    assert torch.equal(*map(logits, same))


def test_a_bias_is_where_the_family_has_one() -> None:
    model = family(Names(), biases=("value", "down")).network(DENSE)
    biased = [name.removesuffix(".bias") for name in model.state_dict() if name.endswith(".bias")]
    leaves = ("self_attn.v_proj", "mlp.down_proj")
    assert biased == [f"model.layers.{index}.{leaf}" for index in (0, 1) for leaf in leaves]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"key": "self_attn.q_proj"}, "two parts are at one place: 'self_attn.q_proj'"),
        ({"output": "self_attn.q_proj.out"}, "two parts are at one place"),
        ({"head": "model"}, "two parts are at one place: 'model.embed_tokens' and 'model'"),
        ({"experts": "mlp.gate"}, "two parts are at one place: 'mlp.gate' and 'mlp.gate'"),
        ({"expert_up": "gate_proj"}, "two parts are at one place: 'gate_proj'"),
        ({"embedding": ""}, "'' is no dotted name"),
        ({"blocks": "model..layers"}, "'model..layers' is no dotted name"),
        ({"down": "mlp.forward"}, "no module can have a part that is called 'forward'"),
        ({"expert_up": "take"}, "no module can have a part that is called 'take'"),
        ({"head": "sizes"}, "no module can have a part that is called 'sizes'"),
    ],
)
def test_names_that_cannot_be_built_are_refused(change: dict[str, str], fault: str) -> None:
    with pytest.raises(ValueError, match="the family odd: names") as caught:
        family(replace(Names(), **change))
    assert fault in str(caught.value)


def test_names_that_no_model_of_the_family_has_do_not_matter() -> None:
    names = Names(gate="mlp.gate", up="mlp.experts", query_norm="self_attn.q_proj")
    Family(name="dense", architectures=("Dense",), names=names)
    with pytest.raises(ValueError, match=r"q_proj.*q_proj"):
        Family(name="dense", architectures=("Dense",), names=names, defaults={"head_norms": True})


@pytest.mark.parametrize(
    "given",
    [{"architectures": "OddLM"}, {"biases": "key"}, {"published": "Odd"}, {"variants": {"f": "x"}}],
    ids=lambda given: next(iter(given)),
)
def test_a_text_is_no_tuple_of_characters(given: dict[str, Any]) -> None:
    """The family would be taken for one of other names, and never be found."""
    with pytest.raises(ValueError, match="is no tuple, as"):
        Family(**{"name": "odd", "architectures": ("Odd",), **given})


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"defaults": {"thetta": 1.0}}, "no size is called 'thetta'; did you mean theta"),
        ({"biases": ("head",)}, "biases: 'head' is none of query, key"),
        ({"architectures": ()}, "architectures: there is none"),
        ({"logits_shift": 2}, "logits_shift: 2 is neither 0 nor 1"),
    ],
)
def test_other_faults_of_a_table_are_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match="the family odd") as caught:
        Family(**{"name": "odd", "architectures": ("Odd",), **given})
    assert fault in str(caught.value)


CONFIG = {
    "architectures": ["Odd"], "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 9, "mask_token_id": 1, "intermediate_size": 10, "moe_intermediate_size": 6,
    "experts": 3,
}  # fmt: skip
DENSE_CONFIG = {k: v for k, v in CONFIG.items() if k not in ("experts", "moe_intermediate_size")}


@pytest.mark.parametrize("field", ["experts", "moe_intermediate_size"])
@pytest.mark.parametrize("null", [False, True])
def test_a_mixture_is_never_dense_for_want_of_a_field(field: str, null: bool) -> None:
    config = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(UnsupportedModel) as caught:
        family(Names()).read({**config, **({field: None} if null else {})})
    assert caught.value.where == (f"{field}: a value is needed",)


def test_a_length_of_blocks_is_never_all_positions_for_want_of_a_field() -> None:
    blocked = Family(name="b", architectures=("Odd",), fields=Fields(block="window"))
    assert blocked.attention == "block-causal, window of the configuration"
    assert blocked.read({**DENSE_CONFIG, "window": 3}).block == 3
    for config in (DENSE_CONFIG, {**DENSE_CONFIG, "window": None}):
        with pytest.raises(UnsupportedModel) as caught:
            blocked.read(config)
        assert caught.value.where == ("window: a value is needed",)


def test_a_default_without_a_field_holds_for_every_configuration() -> None:
    fixed = Family(name="b", architectures=("Odd",), defaults={"block": 5})
    assert fixed.attention == "block-causal, blocks of 5"
    assert fixed.build(DENSE_CONFIG)[1].attention_block == 5
    with pytest.raises(UnsupportedModel, match="variant"):
        fixed.read({**DENSE_CONFIG, "block": 7})


def test_a_family_may_choose_other_variants_than_usual() -> None:
    named = Family(name="b", architectures=("Odd",), variants={"hidden_act": ("swiglu",)})
    named.read({**DENSE_CONFIG, "hidden_act": "swiglu"})
    with pytest.raises(UnsupportedModel) as caught:
        named.read({**DENSE_CONFIG, "hidden_act": "silu", "use_sliding_window": True})
    assert [where.split(":")[0] for where in caught.value.where] == [
        "hidden_act",
        "use_sliding_window",
    ]


def test_a_truth_value_is_no_number() -> None:
    for allowed, other in ((1, True), (0, False), (True, 2), (True, None)):
        odd = Family(name="b", architectures=("Odd",), variants={"v": (allowed,)})
        odd.read({**DENSE_CONFIG, "v": allowed})
        with pytest.raises(UnsupportedModel, match="variant"):
            odd.read({**DENSE_CONFIG, "v": other})


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_a_rotary_base_counts_wherever_it_stands(field: str) -> None:
    plain = Family(name="b", architectures=("Odd",), fields=Fields(theta=""))
    assert (
        plain.read({**DENSE_CONFIG, field: {"rope_type": "default", "rope_theta": 7.0}}).theta
        == 7.0
    )


def test_a_plugin_may_implement_what_is_refused() -> None:
    refused = BUILT_IN.refused[0]
    brave = Family(name="brave", architectures=refused.architectures)
    config = {**DENSE_CONFIG, "architectures": list(refused.architectures)}
    families = Families((*FAMILIES, brave))
    assert families.find(config) is brave
    assert families.refusal(config) is None
    assert families.build(config)[1].family == "brave"


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["rotary", "rotary_", "rotary.a", "x.rotary", "x"]), max_size=4))
def test_a_free_name_is_free(taken: list[str]) -> None:
    found = free_name("", "rotary", taken)
    assert not any(f"{name}.".startswith(f"{found}.") for name in taken)
    assert found.rstrip("_") == "rotary"


def test_every_size_has_a_field() -> None:
    assert set(asdict(Fields())) == set(Sizes.model_fields)
