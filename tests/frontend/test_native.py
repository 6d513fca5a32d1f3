"""What the second front end refuses, each with its reason."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig

from qdc.errors import UnknownName, UnsupportedModel
from qdc.frontend.exported import trace_native
from qdc.frontend.native import NativeModel, build_native, native_facts
from qdc.frontend.opening import open_model
from qdc.frontend.select import choose, parse_choice
from qdc.ir.facts import ModelFacts
from tests.support.checkpoints import write_checkpoint
from tests.support.natives import CONFIGURATIONS, rewrite, write_native

FACTS = ModelFacts(family="toy", mask_token_id=1, vocabulary=20, max_length=16)


def configuration(kind: str, architecture: str, **fields: Any) -> dict[str, Any]:
    return {**CONFIGURATIONS[kind]().to_dict(), "architectures": [architecture], **fields}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"model_type": "mystery", "auto_map": {"AutoModel": "modeling_mystery.Model"}},
            "transformers has no model type 'mystery'; the model's own code lies beside it",
        ),
        ({"model_type": None}, "transformers has no model type None"),
        ({"architectures": ["BertForTokenClassification"]}, "of the model type bert, qdc compiles"),
        ({"architectures": None}, "of the model type bert, qdc compiles BertForMaskedLM"),
        (
            {
                "model_type": "t5",
                "architectures": ["T5Model"],
                "is_encoder_decoder": True,
                "classifier_dropout": 0.0,
            },
            "it has an encoder and a decoder",
        ),
    ],
)
def test_refuses_what_transformers_does_not_implement(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        build_native(configuration("bert", "BertForMaskedLM", **fields))
    assert caught.value.where[0].startswith(reason)
    assert "LLaDAModelLM" in caught.value.help
    assert "code beside a checkpoint is never run" in caught.value.help


def test_own_code_beside_a_known_class_is_not_run(tmp_path: Path) -> None:
    """``auto_map`` names a file that would fail if it were so much as imported."""
    folder = rewrite(
        write_native(tmp_path / "model", "bert"),
        tmp_path / "hostile",
        auto_map={"AutoModelForMaskedLM": "evil.Model", "AutoConfig": "evil.Config"},
    )
    (folder / "evil.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    assert open_model(folder)[1].graph.model.family == "bert"


def test_a_family_without_native_class_has_one_front_end(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, d_model=32, mlp_hidden_size=48)
    with pytest.raises(UnsupportedModel) as caught:
        open_model(folder, "export")
    assert caught.value.where == ("transformers has no model type 'llada'",)
    assert open_model(folder, "fx")[1].graph.name == open_model(folder)[1].graph.name == "llada"


def test_fx_needs_an_own_implementation(tmp_path: Path) -> None:
    folder = write_native(tmp_path / "model", "bert")
    with pytest.raises(UnsupportedModel, match="implements BertForMaskedLM") as caught:
        open_model(folder, "fx")
    assert "LLaDAModelLM" in caught.value.help


def test_auto_takes_our_own_where_there_is_one() -> None:
    assert choose({"architectures": ["LLaDAModelLM"]}) == "fx"
    assert choose({"architectures": ["LLaDA2MoeModelLM"]}) == "fx"
    assert choose({"architectures": ["BertForMaskedLM"]}) == "export"
    with pytest.raises(UnknownName, match="no front end is called 'jit'"):
        parse_choice("jit")


def test_a_mask_token_outside_the_vocabulary_is_refused() -> None:
    native = build_native(configuration("llama", "LlamaForCausalLM", mask_token_id=5000))
    with pytest.raises(UnsupportedModel, match="mask token 5000 is outside the 2048") as caught:
        native_facts(native, Path("nowhere"))
    assert caught.value.where == (
        "config.json: mask_token_id",
        "tokenizer_config.json: mask_token",
    )


def test_the_tokenizer_gives_mask_token_and_length(tmp_path: Path) -> None:
    folder = rewrite(
        write_native(tmp_path / "model", "llama"),
        tmp_path / "other",
        mask_token_id=None,
        max_position_embeddings=100_000,
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = native_facts(build_native(config), folder)
    assert facts.mask_token_id == 1
    assert facts.max_length == settings["model_max_length"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"hidden_size": 1 << 40}, "sizes that no model has"),
        ({"num_hidden_layers": 1 << 20}, "sizes that no model has"),
        ({"num_labels": 1 << 30}, "sizes that no model has"),
        ({"hidden_act": "no such"}, "transformers cannot build llama"),
        ({"hidden_size": "wide"}, "config.json is no configuration of llama"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        build_native(configuration("llama", "LlamaForCausalLM", **fields))


@pytest.mark.parametrize(
    ("kind", "name", "fields"),
    [
        ("gpt2", "GPT2LMHeadModel", {"n_layer": 1 << 30}),
        ("gpt2", "GPT2LMHeadModel", {"n_embd": 1 << 40}),
        ("qwen3_moe", "Qwen3MoeForCausalLM", {"num_experts": 1 << 20}),
        ("llama", "LlamaForCausalLM", {"text_config": {"num_hidden_layers": 1 << 30}}),
    ],
)
def test_sizes_are_bounded_under_every_name(kind: str, name: str, fields: dict[str, Any]) -> None:
    config = {"model_type": kind, "architectures": [name], "num_hidden_layers": 2, **fields}
    with pytest.raises(UnsupportedModel, match="sizes that no model has"):
        build_native(config)


def test_parameters_are_never_allocated() -> None:
    """The embedding alone would take four terabytes."""
    sizes = {"vocab_size": 1 << 24, "hidden_size": 1 << 16, "intermediate_size": 1 << 16}
    native = build_native(configuration("llama", "LlamaForCausalLM", **sizes))
    assert all(parameter.is_meta for parameter in native.parameters())
    assert not any(buffer.is_meta for buffer in native.buffers())


class Toy(nn.Module):
    """Enough of a transformers module for the exporter, around a block that a test gives."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = LlamaConfig()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList([block(), block()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return Output(last_hidden_state=hidden)


class Output(dict[str, Tensor]):
    """As the outputs of transformers, by name and by attribute."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Block(nn.Module):
    """A linear, and what a subclass does wrong."""

    causal = False

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.wrong(self.attention(self.proj(hidden)))

    def attention(self, hidden: Tensor) -> Tensor:
        heads = hidden[:, None]
        return nn.functional.scaled_dot_product_attention(
            heads, heads, heads, is_causal=self.causal
        )[:, 0]

    def wrong(self, hidden: Tensor) -> Tensor:
        return hidden


class Branching(Block):
    def wrong(self, hidden: Tensor) -> Tensor:
        return hidden if float(hidden.sum()) > 0 else -hidden


class Fused(Block):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.empty(2, 8, 8))

    def wrong(self, hidden: Tensor) -> Tensor:
        return hidden @ self.experts[0]


class Causal(Block):
    causal = True


class Masked(Block):
    def attention(self, hidden: Tensor) -> Tensor:
        heads, place = hidden[:, None], torch.arange(hidden.shape[1], device=hidden.device)
        return nn.functional.scaled_dot_product_attention(
            heads, heads, heads, attn_mask=place[:, None] >= place
        )[:, 0]


class Blind(Block):
    def attention(self, hidden: Tensor) -> Tensor:
        return hidden


class Doubling(Block):
    def wrong(self, hidden: Tensor) -> Tensor:
        return torch.cat((hidden, hidden), 1).cumsum(1)[:, : hidden.shape[1]]


class Overwriting(Block):
    def wrong(self, hidden: Tensor) -> Tensor:
        hidden[:, 0].zero_()
        return hidden


@pytest.mark.parametrize(
    ("block", "what", "where"),
    [
        (Branching, "torch.export cannot trace Toy: Could not guard on data-dependent", ""),
        (Fused, "2 matrices of the blocks are the weights of no linear", "f32[2,8,8]"),
        (Causal, "attention reads to one side only", "%layers.0.attention"),
        (Masked, "attention reads to one side only", "%layers.0.attention"),
        (Blind, "the model calls no scaled_dot_product_attention", ""),
        (Doubling, "a size is neither batch nor length nor their product", "cat"),
        (Overwriting, "the model changes views of tensors in place", "aten.zero_"),
    ],
)
def test_modules_that_would_compile_to_something_else_are_refused(
    block: Callable[[], nn.Module], what: str, where: str
) -> None:
    with torch.device("meta"):
        native = NativeModel(Toy(block))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel) as caught:
        trace_native(native.eval(), FACTS)
    assert caught.value.what.startswith(what)
    assert where in "; ".join(caught.value.where)


def test_a_refusal_says_one_thing(capfd: pytest.CaptureFixture[str]) -> None:
    """And not the graph, nor the log, of what torch had traced so far."""
    with torch.device("meta"):
        native = NativeModel(Toy(Branching))  # type: ignore[arg-type]
    logs = logging.root.manager.disable
    with pytest.raises(UnsupportedModel, match="cannot trace Toy"):
        trace_native(native.eval(), FACTS)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logs


def test_the_toy_itself_is_traced() -> None:
    with torch.device("meta"):
        native = NativeModel(Toy(Block))  # type: ignore[arg-type]
    graph = trace_native(native.eval(), FACTS).graph
    assert [region.name for region in graph.regions] == ["layers.0", "layers.1"]
    assert isinstance(native.body.config, PretrainedConfig)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k != "qwen2")) for k in CONFIGURATIONS],
)
def test_fields_that_the_class_does_not_know_are_told(kind: str, tmp_path: Path) -> None:
    """What transformers itself has written is known; old names that it translates are too."""
    source = write_native(tmp_path / "model", kind)
    assert open_model(source)[0].unused_fields == ""
    more: dict[str, Any] = {"num_labels": 2, "torch_dtype": "float32", "temperature": 2.0}
    more["unset"] = False
    known = rewrite(source, tmp_path / "known", **more)
    assert open_model(known)[0].unused_fields == ""
    odd = rewrite(source, tmp_path / "odd", attention_scale=0.5, made_by="me")
    told = open_model(odd)[0].unused_fields
    assert told.startswith("config.json has 2 fields that ")
    assert "does not know, not used: " in told
    assert {"attention_scale", "made_by"} == set(told.partition("used: ")[2].split(", "))


def test_an_older_name_that_transformers_translates_is_used(tmp_path: Path) -> None:
    source = write_native(tmp_path / "model", "llama")
    old = rewrite(source, tmp_path / "old", rope_theta=7.0, rope_parameters=None)
    checkpoint, _ = open_model(old)
    assert checkpoint.unused_fields == ""
