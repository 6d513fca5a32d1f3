"""DiffusionGemma: who sees whom, its configuration, and how its tensors are read."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdc.errors import InvalidCheckpoint, QdcError, UnsupportedModel
from qdc.frontend.coverage import coverage
from qdc.frontend.opening import open_model
from qdc.models.canvas import CanvasAttention, as_text, canvas_start, seen_columns
from qdc.models.canvas_decoder import CanvasDecoder
from qdc.models.canvas_sizes import USUAL_ROPES, CanvasSizes
from qdc.models.diffusion_gemma import DIFFUSION_GEMMA
from qdc.models.families import BUILT_IN
from qdc.models.layers import ProportionalRotary, Rotary, takes_windows
from qdc.models.window import Window, through
from qdc.runtime.load import load_checkpoint
from tests.support.canvas import CANVAS, in_transformers, native_logits, write_canvas
from tests.support.natives import rewrite
from tests.support.published import FIXTURES, config_of, write_published

TOLERANCE = 5e-5
"""In fp32 logits of a standard deviation near 2; the order of additions differs."""
Table = dict[str, Any]


def sight(length: int, start: int, past: int | None) -> list[str]:
    columns = torch.arange(length)
    seen = seen_columns(columns, columns, start, past).tolist()
    return ["".join("x" if each else "." for each in row) for row in seen]


def test_text_is_causal_and_the_canvas_sees_all_of_itself() -> None:
    assert sight(5, 3, None) == ["x....", "xx...", "xxx..", "xxxxx", "xxxxx"]
    assert sight(5, 3, 2) == ["x....", "xx...", ".xx..", "..xxx", "..xxx"]
    assert sight(3, 0, 1) == ["xxx", "xxx", "xxx"]
    assert sight(3, 3, 2) == ["x..", "xx.", ".xx"]


def test_no_mask_is_made_where_all_see_all() -> None:
    query = torch.zeros(1, 4, 1, 2)
    assert CanvasAttention(4, 2).visible(query, None) is None
    text = Window(torch.arange(9)[None], torch.ones(1, 9, dtype=torch.bool), keeps=True)
    text.move(5, 9, 9)
    assert CanvasAttention(4).visible_in(text) is None
    assert CanvasAttention(4, 6).visible_in(text) is None
    seen = CanvasAttention(4, 5).visible_in(text)
    assert seen is not None
    assert seen[0, 0].sum(1).tolist() == [8] * 4
    hidden = torch.tensor([[0, 1, 1, 1]])
    padded = CanvasAttention(4).visible(query, hidden)
    assert padded is not None
    assert padded[0, 0].sum(0).tolist() == [1, 4, 4, 4]


def test_the_canvas_is_the_end_of_what_is_called() -> None:
    assert [canvas_start(columns, 4) for columns in (2, 4, 7)] == [0, 0, 3]
    with as_text():
        assert canvas_start(7, 4) == 7
    assert canvas_start(7, 4) == 3


def test_a_proportional_rotation_leaves_the_later_pairs() -> None:
    x = torch.randn(1, 6, 1, 16, generator=torch.Generator().manual_seed(0))
    whole, part = Rotary(16, 100.0)(x), ProportionalRotary(16, 100.0, 0.5)(x)
    turned = torch.arange(16) % 8 < 4
    assert torch.equal(part[..., turned], whole[..., turned])
    assert torch.equal(part[..., ~turned], x[..., ~turned])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_canvas(tmp_path_factory.mktemp("canvas"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> CanvasDecoder:
    found = load_checkpoint(folder, "cpu", torch.float32)
    assert isinstance(found, CanvasDecoder)
    return found


def drawn(*shape: int) -> Tensor:
    return torch.randint(0, 2048, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_equals_the_native_class(folder: Path, ours: CanvasDecoder) -> None:
    """With texts beyond the sliding window, with padding, and conditioned on a step before."""
    native, tokens = in_transformers(folder), drawn(3, 29)
    mask = torch.ones_like(tokens)
    mask[1, :4], mask[2, :20] = 0, 0
    first = native_logits(native, tokens)
    assert float(first.std()) > 0.5
    found = [ours(tokens), ours(tokens, mask), ours(tokens, mask, first / 0.6)]
    due = [first, native_logits(native, tokens, mask),
           native_logits(native, tokens, mask, first / 0.6)]  # fmt: skip
    for some, wanted in zip(found, due, strict=True):
        torch.testing.assert_close(some[:, -CANVAS:], wanted, atol=TOLERANCE, rtol=0)
        assert bool(some.isfinite().all())
    assert float((due[0] - due[1])[1:].abs().max()) > 0.1
    assert float((due[2] - due[1]).abs().max()) > 0.1


@torch.no_grad()
def test_the_states_of_the_text_are_those_of_the_published_encoder(tmp_path: Path) -> None:
    model = load_checkpoint(write_published(tmp_path, "diffusion-gemma"), "cpu", torch.float32)
    assert isinstance(model, CanvasDecoder)
    data = load_file(FIXTURES / "diffusion-gemma" / "forward.safetensors")
    expected = data["first.encoder"]
    found = model.encode(data["first.ids"][:, : expected.shape[1]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_text_that_is_kept_gives_what_the_whole_gives(ours: CanvasDecoder) -> None:
    tokens, visible = drawn(2, 20 + 2 * CANVAS), torch.ones(2, 20 + 2 * CANVAS, dtype=torch.bool)
    visible[1, :7] = False
    first, second = 20 + CANVAS, 20 + 2 * CANVAS
    assert takes_windows(ours)
    window = Window((visible.cumsum(1) - 1).clamp(min=0), visible, keeps=True)
    before = ours(tokens, visible)[:, -CANVAS:]
    with through(window):
        for start, end in ((0, 20), (20, first)):
            window.move(start, end, end)
            ours(tokens[:, start:end])  # as a canvas first, which must leave nothing behind
            window.move(start, end, end)
            ours.encode(tokens[:, start:end])
        window.move(first, second, second)
        found = ours(tokens[:, first:], before=before)
    expected = ours(tokens, visible, before)[:, first:]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_weights_stand_where_every_product_is_summed_alike(folder: Path, tmp_path: Path) -> None:
    """Experts with one token are; a file in fp32 is not copied for its dtype."""
    wide = rewrite(folder, tmp_path / "f32", lambda s: {n: t.float() for n, t in s.items()})
    loaded = load_checkpoint(wide, "cpu", torch.float32)
    assert all(each.data_ptr() % 64 == 0 for each in loaded.parameters())


def test_a_signal_that_does_not_fit_is_refused(ours: CanvasDecoder) -> None:
    tokens = drawn(2, 12)
    for shape in ((2, CANVAS + 1, 2048), (1, CANVAS, 2048), (2, CANVAS, 2047), (2, 0, 2048)):
        with pytest.raises(QdcError, match=r"before is \[") as caught:
            ours(tokens, before=torch.zeros(shape))
        assert "[2, n, 2048] with n from 1 to 8" in str(caught.value.help)


def test_stacks_are_split_and_images_left_out_and_counted(folder: Path) -> None:
    checkpoint, program = open_model(folder)
    stored = load_file(folder / "model.safetensors")
    block = "model.decoder.layers.0"
    stack = stored[f"{block}.experts.gate_up_proj"]
    assert torch.equal(checkpoint.tensor(f"{block}.experts.2.up_proj.weight"), stack[2, 16:])
    images = {name for name in stored if "vision" in name}
    rows = [row for row in coverage(program.graph, checkpoint) if row.status == "left out"]
    assert {row.tensor for row in rows} == images != set()
    assert sum(row.weights for row in rows) == sum(stored[name].numel() for name in images)
    assert all("images" in row.reason for row in rows)


def test_tensors_under_the_names_of_the_text_are_taken(folder: Path, tmp_path: Path) -> None:
    def moved(state: dict[str, Tensor]) -> dict[str, Tensor]:
        old, new = "model.decoder.layers.", "model.encoder.language_model.layers."
        keeps = ("layer_scalar",)
        return {n if n.endswith(keeps) else n.replace(old, new): t for n, t in state.items()}

    def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "model.encoder.language_model.norm.weight"
        return {**state, name: state["model.decoder.norm.weight"].clone()}

    tokens = drawn(1, 14)
    expected = load_checkpoint(folder, "cpu", torch.float32)(tokens)
    for edit in (moved, doubled):
        other = rewrite(folder, tmp_path / edit.__name__, edit)
        assert torch.equal(load_checkpoint(other, "cpu", torch.float32)(tokens), expected)

    def unlike(state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "model.encoder.language_model.norm.weight"
        return {**state, name: state["model.decoder.norm.weight"] + 1}

    with pytest.raises(InvalidCheckpoint):
        load_checkpoint(rewrite(folder, tmp_path / "unlike", unlike), "cpu", torch.float32)


def read(text: Table | None = None, **fields: Any) -> CanvasSizes:
    config = copy.deepcopy(config_of("diffusion-gemma"))
    config["text_config"] |= text or {}
    return DIFFUSION_GEMMA.sizes_of({**config, **fields})


USED: Table = {
    "hidden_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 100,
    "num_experts": 9,
    "top_k_experts": 3,
    "moe_intermediate_size": 20,
    "vocab_size": 170,
    "max_position_embeddings": 99,
    "rms_norm_eps": 1e-3,
    "sliding_window": 4,
    "final_logit_softcapping": 10.0,
    "per_layer_config": {"1": {"head_dim": 16}},
    "rope_parameters": {**USUAL_ROPES, "sliding_attention": {"rope_type": "default",
                                                              "rope_theta": 7.0}},
}  # fmt: skip
HELD: Table = {
    "hidden_activation": "silu",
    "attention_bias": True,
    "use_bidirectional_attention": "all",
    "attention_k_eq_v": False,
    "tie_word_embeddings": False,
    "is_causal": False,
    "rope_scaling": {"rope_type": "yarn"},
    "num_experts": 0,
    "hidden_size": True,
    "final_logit_softcapping": None,
    "layer_types": ["full_attention", "sliding_attention"],
    "per_layer_config": {"1": {"intermediate_size": 7}},
    "rope_parameters": {**USUAL_ROPES, "full_attention": {"rope_type": "yarn", "rope_theta": 7.0}},
    "attn_logit_softcapping": 50.0,
    "num_kv_shared_layers": 2,
    "head_dim": 15,
    "top_k_experts": 5,
    "sliding_window": 1,
}
INERT: Table = {
    "attention_dropout": 0.5,
    "pad_token_id": 3,
    "eos_token_id": [1, 5],
    "bos_token_id": 7,
    "initializer_range": 1.0,
    "model_type": "other",
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
}


@pytest.mark.parametrize(("field", "value"), USED.items(), ids=str)
def test_a_field_is_honoured(field: str, value: object) -> None:
    assert read({field: value}) != read()


@pytest.mark.parametrize(("field", "value"), HELD.items(), ids=str)
def test_a_field_is_held(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read({field: value})
    assert all(place.startswith(f"text_config.{field}") for place in caught.value.where)


@pytest.mark.parametrize(("field", "value"), INERT.items(), ids=str)
def test_a_field_changes_nothing(field: str, value: object) -> None:
    assert read({field: value}) == read()


def test_blocks_of_a_kind_are_alike() -> None:
    kinds, own = ["full_attention"] * 2, {"head_dim": 32, "num_key_value_heads": 1}
    with pytest.raises(UnsupportedModel, match="variant") as caught:
        read({"layer_types": kinds})
    assert caught.value.where[0].endswith("blocks of full_attention differ from each other")
    found = read({"layer_types": kinds, "per_layer_config": {"0": own, "1": own}})
    assert found.heads_of(0) == found.heads_of(1) == read().heads_of(1)
    one = {"num_hidden_layers": 1, "layer_types": None, "per_layer_config": {"0": own}}
    assert read(one).heads_of(0) == found.heads_of(0)


def test_fields_beside_the_text_are_read_too() -> None:
    assert read(canvas_length=4).canvas == 4
    assert read(vision_config=None, image_token_id=3) == read()
    for fields in ({"tie_word_embeddings": False}, {"hidden_size": 64}, {"canvas_length": 0}):
        with pytest.raises(UnsupportedModel) as caught:
            read(**fields)
        assert all(place.startswith(next(iter(fields))) for place in caught.value.where)
    with pytest.raises(UnsupportedModel) as caught:
        read(canvas_length=4097)
    told = "canvas_length 4097 is above text_config.max_position_embeddings 4096"
    assert caught.value.where == (told,)
    assert DIFFUSION_GEMMA.unused(config_of("diffusion-gemma")) == ()
    config = {**config_of("diffusion-gemma"), "trained_by": "somebody"}
    config["text_config"] = {**config["text_config"], "dataset": [1]}
    assert DIFFUSION_GEMMA.unused(config) == ("trained_by", "text_config.dataset")


def test_what_is_missing_is_as_in_the_published_configuration_class() -> None:
    """Each sixth block sees all of the text, and has heads of its own."""
    text = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8}
    sizes = DIFFUSION_GEMMA.sizes_of({"text_config": text})
    assert [place for place, kind in enumerate(sizes.kinds) if kind == "full_attention"] == [
        5, 11, 17, 23, 29
    ]  # fmt: skip
    assert (sizes.canvas, sizes.past, sizes.cap, sizes.blocks) == (256, 512, 30.0, 30)
    assert sizes.heads_of(0)[:3] == (256, 4, 10000.0)
    assert sizes.heads_of(5)[:4] == (512, 4, 1000000.0, 0.25)
    told = BUILT_IN.assumed({"architectures": ["DiffusionGemmaForBlockDiffusion"],
                             "text_config": text})  # fmt: skip
    assert told.startswith("canvas_length 256: ")


def test_the_graph_says_what_the_model_is() -> None:
    facts = BUILT_IN.build(config_of("diffusion-gemma"))[1]
    assert (facts.mask_token_id, facts.canvas, facts.vocabulary) == (None, 8, 160)
    assert facts.renoises
    assert not facts.causal
