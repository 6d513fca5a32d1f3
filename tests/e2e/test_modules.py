"""Torch modules without configuration: compiled from memory, loaded into fresh ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qdc
from qdc.artifact.config import parse_codec, parse_quantization
from qdc.checkpoint.folder import Checkpoint
from qdc.cli import run
from qdc.compiling.savepoints import Savepoints
from qdc.errors import InvalidCalibration, InvalidJournal, QdcError, UnsupportedModel
from qdc.evaluation.evaluate import evaluate
from qdc.evaluation.next_token import evaluate_next
from qdc.frontend.given import find_logits
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from qdc.text.tokenizer import load_tokenizer
from tests.support.artifacts import unsealed
from tests.support.checkpoints import EMBEDDED
from tests.support.modules import LENGTH, MASK, WIDTH, NanoGPT, Unconditional, filled, ids
from tests.support.running import assert_packed_alike

CROSS = "quantize-vocab,stages(calibrate-cross,sensitivity{damp=0.1},abmp-allocate,daq-lower),pack"
ROUNDED = "rtn-lower{bits=4},pack"
Make = Callable[[], nn.Module]
MODELS: dict[str, tuple[Make, dict[str, Any]]] = {
    "mdlm": (Unconditional, {"max_length": LENGTH}),
    "nanogpt": (lambda: NanoGPT(spare=True), {}),
}
Compiled = tuple[Make, dict[str, Any], Path, CompileReport]


def compile_one(module: nn.Module, out: Path, passes: str = CROSS, **options: Any) -> CompileReport:
    """Compile as the tests do unless they say otherwise."""
    usual: dict[str, Any] = {
        "mask_token_id": MASK,
        "calibration": ids(8, LENGTH),
        "samples": 8,
        "write_report": False,
    }
    given = {k: v for k, v in (usual | options).items() if v is not None}
    return qdc.compile(module, passes, out=out, **given)


@pytest.fixture(scope="module", params=MODELS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    make, options = MODELS[request.param]
    out: Path = tmp_path_factory.mktemp(request.param) / "out"
    return make, options, out, compile_one(filled(make()), out, **options)


@torch.no_grad()
def logits(module: nn.Module, tokens: Tensor) -> Tensor:
    """What a module predicts."""
    return find_logits(module(tokens))


def decoded(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an artifact, from its shards and codecs alone."""
    source = Checkpoint(folder)
    tensors = {name: source.tensor(name) for name in source.headers}
    known = standard_registry().codecs()
    for layer, fields in parse_quantization(source.config).layers.items():
        codec = parse_codec(layer, fields, known)
        stored = {s: tensors.pop(f"{layer}.{s}") for s in codec.specification()}
        tensors[f"{layer}.weight"] = codec.dense(codec.unpack(stored))
    return tensors


def test_loads_into_a_fresh_module_what_the_artifact_decodes_to(compiled: Compiled) -> None:
    """Equal to a state dict of the decoded weights, and not far from the original."""
    make, _, out, report = compiled
    fresh = filled(make(), seed=5).train()
    loaded = qdc.load(out, module=fresh, backend="reference")
    assert loaded is fresh
    assert not loaded.training
    by_hand = filled(make(), seed=5)
    missing, unexpected = by_hand.load_state_dict(decoded(out), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight", "spare.weight", "spare.bias"}
    tokens = ids(3, 11, seed=2)
    assert torch.equal(logits(loaded, tokens), logits(by_hand, tokens))
    assert_packed_alike(out, lambda model: logits(model, tokens), make)
    original = logits(filled(make()), tokens)
    lost = (logits(loaded, tokens) - original).norm() / original.norm()
    assert 0 < float(lost) < 0.6
    assert report.checkpoint == f"module {type(fresh).__name__}"
    assert report.predicted_bytes == report.tensor_bytes
    assert {row.status for row in report.coverage} >= {"quantized", "kept"}


def test_every_block_is_compiled_and_the_module_is_left_alone(compiled: Compiled) -> None:
    make, _, _, report = compiled
    linears = {n for n, m in make().named_modules() if isinstance(m, nn.Linear)}
    inside = {name for name in linears if ".h." in name or "blocks." in name}
    prefix = "backbone." if any(name.startswith("backbone.") for name in linears) else ""
    assert {prefix + layer.name for layer in report.layers} == inside


def test_two_runs_give_the_same_bytes(compiled: Compiled, tmp_path: Path) -> None:
    """From a module in training mode with other strides, which stays as it was."""
    make, options, out, _ = compiled
    module = filled(make()).train()
    for linear in module.modules():
        if isinstance(linear, nn.Linear) and linear.weight.shape[0] != 61:
            linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    compile_one(module, tmp_path / "out", **options)
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert module.training
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    compile_one(filled(NanoGPT()), tmp_path / "out", ROUNDED, calibration=None, samples=None)
    loaded = NanoGPT()
    qdc.load(tmp_path / "out", module=loaded, backend="reference")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.scale, torch.tensor([0.75]))


def test_a_stored_buffer_comes_from_the_artifact(tmp_path: Path) -> None:
    """In its own dtype, whatever that of the weights; the module's own values do not matter."""
    module = filled(NanoGPT())
    module.scale.fill_(0.5)
    compile_one(module, tmp_path / "out", ROUNDED, calibration=None, samples=None)
    loaded = NanoGPT()
    qdc.load(tmp_path / "out", module=loaded, dtype=torch.bfloat16, backend="reference")
    assert loaded.scale.dtype == torch.float32
    assert loaded.transformer.wte.weight.dtype == torch.bfloat16
    assert float(loaded.scale) == 0.5
    assert dict(loaded.named_buffers())["transformer.h.0.bias"].dtype == torch.bool
    assert logits(loaded, ids(1, 4)).isfinite().all()


def test_bf16_weights_are_compiled_as_those_of_a_folder(tmp_path: Path) -> None:
    module = filled(NanoGPT()).to(torch.bfloat16)
    compile_one(module, tmp_path / "out")
    loaded = qdc.load(tmp_path / "out", module=NanoGPT(), backend="reference")
    found, expected = (logits(each, ids(2, 9)).float() for each in (loaded, module))
    assert float((found - expected).norm() / expected.norm()) < 0.6


def test_attention_that_is_written_out_is_tried(tmp_path: Path) -> None:
    """No call says in which direction it reads: one token is changed to see."""
    options: dict[str, Any] = {"calibration": None, "samples": None}
    compile_one(filled(NanoGPT(manual=True)), tmp_path / "both", ROUNDED, **options)
    with pytest.raises(UnsupportedModel, match="reads to one side only"):
        compile_one(filled(NanoGPT(manual=True, causal=True)), tmp_path / "no", ROUNDED, **options)


def test_a_causal_module_has_a_next_token_loss(tmp_path: Path) -> None:
    module = filled(NanoGPT(causal=True))
    clean = CROSS.replace("calibrate-cross", "calibrate-cross{geometry=clean}")
    with pytest.raises(UnsupportedModel, match="reads to one side only"):
        compile_one(module, tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="masks are drawn by calibrate-cross"):
        compile_one(module, tmp_path / "out", mask_token_id=None)
    compile_one(module, tmp_path / "out", clean, mask_token_id=None)
    loaded = qdc.load(tmp_path / "out", module=NanoGPT(causal=True), backend="reference")
    windows = ids(4, LENGTH, seed=7)
    found = evaluate_next(lambda tokens: logits(loaded, tokens), windows)
    scores = logits(loaded, windows)[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(scores, windows[:, 1:].flatten())
    assert found.next_token_loss == pytest.approx(float(expected), rel=1e-5)


def test_a_loaded_module_is_evaluated(compiled: Compiled) -> None:
    make, _, out, _ = compiled
    loaded = qdc.load(out, module=make(), backend="reference")
    windows = ids(4, LENGTH, seed=7)
    found = evaluate(lambda tokens: logits(loaded, tokens), windows, MASK, bound_samples=1)
    assert found.windows == 4
    assert all(row.loss > 0 for row in found.ratios)


def test_what_differs_is_named_at_once(compiled: Compiled, tmp_path: Path) -> None:
    make, _, out, _ = compiled
    if make is Unconditional:
        other: Unconditional | NanoGPT = Unconditional(blocks=3, base=500.0)
        wanted = ["backbone.blocks.2.attn_out.weight: in the module alone", "inv_freq: a buffer"]
    else:
        other = NanoGPT(spare=True)
        other.transformer.h[0].fc = nn.Linear(WIDTH, 3 * WIDTH)
        other.extra = nn.Linear(2, 2)
        wanted = ["fc: its weight is [96, 32] in the module", "extra.bias: in the module alone"]
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(QdcError, match="the module is not like the") as caught:
        qdc.load(out, module=other, backend="reference")
    for text in wanted:
        assert any(text in problem for problem in caught.value.where), caught.value.where
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())


def test_commands_that_need_the_model_say_what_to_do(
    compiled: Compiled, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, _, out, _ = compiled
    held = tmp_path / "held.txt"
    held.write_text("some words " * 50, encoding="utf-8")
    commands = (
        ["run", str(out), "a<mask>"],
        ["generate", str(out), "a"],
        ["eval", str(out), "--text", str(held)],
        ["export", str(out), "-o", str(tmp_path / "dense")],
    )
    for command in commands:
        assert run(command) != 0
        assert "qdc.load(OUT, module=...)" in capsys.readouterr().err
    assert run(["show", str(out)]) == 0
    assert "region" in capsys.readouterr().out
    assert run(["verify", str(out)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{out} is as it was written"
    assert int(second.split()[6]) > 10
    with pytest.raises(UnsupportedModel, match="which has no configuration"):
        qdc.load(out, backend="reference")


def test_damage_is_found_without_the_module(
    compiled: Compiled, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without digests of the files too, by those of the compile and by what codecs ask for."""
    _, _, out, _ = compiled
    damaged = Path(shutil.copytree(out, tmp_path / "damaged"))
    (damaged / "qdc.sha256").unlink()
    layer = next(iter(parse_quantization(Checkpoint(out).config).layers))
    shard = (
        damaged / Checkpoint(out).file(next(n for n in Checkpoint(out).headers if layer in n)).name
    )
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert run(["verify", str(damaged)]) == 1
    assert "is not the tensor that was compiled" in capsys.readouterr().out
    config = json.loads((damaged / "config.json").read_text(encoding="utf-8"))
    layers = config["quantization_config"]["layers"]
    layers["elsewhere"] = layers.pop(layer)
    (damaged / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run(["verify", str(damaged)]) == 1
    assert "tensors are missing, 0 have no place in the model" in capsys.readouterr().out


def test_an_interrupted_compile_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its identity is the module's state: of another one it is refused."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    compile_one(filled(NanoGPT()), whole)
    save = Savepoints.save

    def stop(self: Savepoints, step: Any) -> None:
        save(self, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Savepoints, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        compile_one(filled(NanoGPT()), out)
    monkeypatch.setattr(Savepoints, "save", save)
    with pytest.raises(InvalidJournal, match="other inputs or options") as caught:
        compile_one(filled(NanoGPT(), seed=1), out, resume=True)
    assert "checkpoint" in " ".join(caught.value.where)
    assert compile_one(filled(NanoGPT()), out, resume=True).resumed
    for path in whole.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_tokenizer_comes_along(tmp_path: Path) -> None:
    """An object of transformers or a folder; its mask token is the module's."""
    module = _worded()
    options: dict[str, Any] = {"mask_token_id": None, "calibration": None}
    text: dict[str, Any] = {
        "passes": "stages(calibrate-mcs,rtn-lower),pack",
        "length": LENGTH,
        "samples": 2,
    }
    plain: dict[str, Any] = {"passes": ROUNDED, "samples": None}
    for tokenizer, read in ((load_tokenizer(EMBEDDED), text), (EMBEDDED, plain)):
        out = tmp_path / f"out{len(read)}"
        compile_one(module, out, tokenizer=tokenizer, **options, **read)
        assert load_tokenizer(out)("some text")["input_ids"]
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        assert config["module"]["facts"]["mask_token_id"] == 1
        assert config["module"]["facts"]["vocabulary"] == 2048


def _worded() -> nn.Module:
    module = NanoGPT()
    module.transformer.wte = nn.Embedding(2048, WIDTH)
    module.lm_head = nn.Linear(WIDTH, 2048, bias=False)
    return filled(module)


class Sequence(nn.Module):
    """Layers that are no repeated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(61, 8), nn.Linear(8, 61)

    def forward(self, tokens: Tensor) -> Tensor:
        """``i64[B, L] -> [B, L, 61]``."""
        found: Tensor = self.out(self.embed(tokens))
        return found


class Branching(NanoGPT):
    """A forward that looks at values."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As above."""
        return super().forward(idx if int(idx.max()) > 3 else idx + 1)


@pytest.mark.parametrize(
    ("module", "options", "what", "help"),
    [
        (Unconditional().backbone, {}, "needs sigma beside token ids", "wrap it: class Model"),
        (Unconditional(), {}, "shows no longest input", "give max_length="),
        (NanoGPT(), {"max_length": 17}, "max_length=17 is more than the module's 16", ""),
        (NanoGPT(), {"mask_token_id": 61}, "mask_token_id=61 is outside the 61", ""),
        (NanoGPT(), {"vocabulary": 62}, "vocabulary=62 is more than the 61", ""),
        (NanoGPT(), {"mask_token_id": True}, "mask_token_id=True is no number", ""),
        (NanoGPT(), {"frontend": "fx"}, "traced by torch.export alone", ""),
        (NanoGPT(), {"calibration": None}, "no tokenizer is given", "calibration= as a tensor"),
        (NanoGPT(), {"calibration": torch.rand(2, 16)}, "need integers", ""),
        (NanoGPT(), {"calibration": ids(8, 16), "pack": "within"}, "pack=within is given", "a row"),
        (NanoGPT(), {"calibration": ids(8, 16), "pack": "pad"}, "pack=pad is given", "a row"),
        (NanoGPT(), {"calibration": ids(8, 4), "length": 8}, "rows of 4 token ids", "length=4"),
        (NanoGPT(), {"calibration": ids(2, 16)}, "2 rows that give 2 different", ""),
        (NanoGPT(), {"calibration": torch.full((8, 16), MASK)}, "1 different", ""),
        (
            NanoGPT(),
            {"passes": ROUNDED, "samples": None},
            "no pass of the pipeline reads calibration ids",
            "",
        ),
        (NanoGPT(), {"chat_fields": "a,b"}, "no file to read it from", ""),
        (NanoGPT(), {"tokenizer": 5}, "tokenizer is a int", ""),
        (NanoGPT().to("meta"), {}, "have no values", ""),
        (Sequence(), {"max_length": 8}, "no module list of repeated blocks", ""),
        (Branching(), {}, "cannot trace Branching", "must not branch"),
    ],
)
def test_refusals_say_what_to_do(
    module: nn.Module, options: dict[str, Any], what: str, help: str, tmp_path: Path
) -> None:
    options = {"passes": CROSS, **options}
    with pytest.raises(QdcError) as caught:
        compile_one(module, tmp_path / "out", **options)
    assert what in str(caught.value)
    assert help in caught.value.help
    assert not (tmp_path / "out").exists()


def test_masks_in_calibration_ids_are_refused(tmp_path: Path) -> None:
    rows = ids(8, LENGTH)
    rows[3, 2] = MASK
    with pytest.raises(InvalidCalibration, match="the token ids hold the mask token"):
        compile_one(NanoGPT(), tmp_path / "out", calibration=rows)


def test_a_flipped_bit_is_refused_unless_nobody_looks(tmp_path: Path, compiled: Compiled) -> None:
    make, _, out, _ = compiled
    shutil.copytree(out, tmp_path / "odd")
    shard = next((tmp_path / "odd").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(QdcError, match="not as the artifact was written"):
        qdc.load(tmp_path / "odd", module=make(), backend="reference")
    qdc.load(tmp_path / "odd", module=make(), verify=False, backend="reference")


def test_a_folder_is_refused_with_a_module(tmp_path: Path, compiled: Compiled) -> None:
    make, _, out, _ = compiled
    unsealed(out, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["frontend"] = "export"
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(QdcError, match="of a checkpoint, not of a module"):
        qdc.load(tmp_path / "odd", module=make(), backend="reference")
    odd: list[Any] = [None, {"unread": 1}, {"unread": [], "buffers": []}]
    for broken in odd:
        config["quantization_config"]["frontend"] = "module"
        config["module"] = broken
        (tmp_path / "odd" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(QdcError, match="describe"):
            qdc.load(tmp_path / "odd", module=make(), backend="reference")


@pytest.mark.parametrize("what", ["epsilon", "buffer", "nothing"])
def test_what_no_weight_holds_is_part_of_the_compile(what: str, tmp_path: Path) -> None:
    """Equal weights, another forward: a resumed compile says so; a table in other order too."""
    options: dict[str, Any] = {"max_length": LENGTH, "passes": ROUNDED}
    options |= {"calibration": None, "samples": None}
    compile_one(filled(Unconditional()), tmp_path / "out", **options)
    other = filled(Unconditional())
    if what == "epsilon":
        next(each for each in other.modules() if isinstance(each, nn.LayerNorm)).eps = 0.1
    elif what == "buffer":
        other.backbone.inv_freq.copy_(other.backbone.inv_freq.flip(0).clone())
        with pytest.raises(QdcError, match="inv_freq: a buffer with other values"):
            qdc.load(tmp_path / "out", module=other, backend="reference")
    if what == "nothing":
        compile_one(other, tmp_path / "out", resume=True, **options)
        return
    with pytest.raises(QdcError, match="not what this compile would make"):
        compile_one(other, tmp_path / "out", resume=True, **options)


@pytest.mark.parametrize("pack", ["documents", "pad"])
def test_a_mask_that_stands_for_text_is_refused(pack: str, tmp_path: Path) -> None:
    """The token that is also a sign of the text: every such place would look masked."""
    passes = f"stages(calibrate-mcs{{pack={pack}}},rtn-lower),pack"
    sign = load_tokenizer(EMBEDDED)(".", add_special_tokens=False)["input_ids"][0]
    options: dict[str, Any] = {"passes": passes, "calibration": None, "tokenizer": EMBEDDED}
    with pytest.raises(InvalidCalibration, match="holds the mask token"):
        compile_one(_worded(), tmp_path / "out", length=LENGTH, mask_token_id=sign, **options)


def test_a_module_is_verified_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tensors are compared without the module; one flipped bit is found and named."""
    out = tmp_path / "out"
    options: dict[str, Any] = {"passes": ROUNDED, "calibration": None, "samples": None}
    compile_one(filled(NanoGPT()), out, **options)
    assert run(["verify", str(out)]) == 0
    said = capsys.readouterr().out
    assert "is as it was written" in said
    assert " 0 tensors" not in said
    shard = max(out.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 0x40
    shard.write_bytes(bytes(data))
    assert run(["verify", str(out)]) != 0
    assert shard.name in "".join(capsys.readouterr())


SURE = (
    "stages(calibrate-mcs{geometry=tmas steps=4 token-weights=certainty},rtn-lower{group=8}),pack"
)


def test_tokens_are_weighed_where_a_layer_reads_one_row_a_sample(tmp_path: Path) -> None:
    """The embedding of times has no tokens: its rows count the mean of those of their sample."""
    make, options = MODELS["mdlm"]
    report = compile_one(filled(make()), tmp_path / "out", SURE, **options)
    (states,), (use,) = report.calibration_states, report.calibration_certainty
    assert states.drawn == states.asked == (2, 2, 2, 2)
    assert use.tokens == 8 * LENGTH


def test_guide_knows_what_blocks_share_and_what_is_of_a_sample(tmp_path: Path) -> None:
    make, options = MODELS["mdlm"]
    passes = (
        "guide{outputs=true vocabulary=true},quantize-vocab{bits=4 rounding=guided},"
        "stages(calibrate-cross{token-weights=guided},sensitivity,trellis-lower{outputs=guided "
        "height=16}),pack"
    )
    report = compile_one(filled(make()), tmp_path / "out", passes, **options)
    assert any("computed for a sample, not for its tokens" in said for said in report.remarks)


def test_without_a_head_nothing_is_sure(tmp_path: Path) -> None:
    make, options = MODELS["nanogpt"]
    with pytest.raises(UnsupportedModel, match="the model ends in mul"):
        compile_one(filled(make()), tmp_path / "out", SURE, **options)
