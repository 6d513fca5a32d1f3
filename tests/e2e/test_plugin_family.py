"""A family of a third party is a table: the one of the page, against an implementation of its own.

``reference`` is written in plain torch from the description on the page, under the published names;
nothing of ``qdc.models`` is in it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoModel

import qdc
import qdc.hf
from qdc.cli import run
from qdc.errors import UnsupportedModel
from qdc.hf import settings
from tests.support.checkpoints import write_model
from tests.support.rotated import without_rotations

PAGE = Path(__file__).parents[2] / "docs" / "writing_families.md"
TOLERANCE = 1e-5
WIDTH, HEADS, SHARED, HEAD, INNER, SYMBOLS = 48, 4, 2, 10, 72, 2048
BASE, FLOOR = 700.0, 1e-3
CONFIG: dict[str, Any] = {
    "architectures": ["OrchidForDiffusion"],
    "model_type": "orchid",
    "dim": WIDTH,
    "depth": 2,
    "query_heads": HEADS,
    "shared_heads": SHARED,
    "head_size": HEAD,
    "inner": INNER,
    "symbols": SYMBOLS,
    "context": 64,
    "rotary_base": BASE,
    "norm_floor": FLOOR,
    "blank": 1,
    "shares_table": False,
    "ffn": "swiglu",
    "window": None,
}
BLOCK = {
    "mixer.before": (WIDTH,),
    "mixer.heads.wq": (HEADS * HEAD, WIDTH),
    "mixer.heads.wk": (SHARED * HEAD, WIDTH),
    "mixer.heads.wv": (SHARED * HEAD, WIDTH),
    "mixer.heads.scale_q": (HEAD,),
    "mixer.heads.scale_k": (HEAD,),
    "mixer.wo": (WIDTH, HEADS * HEAD),
    "ffn_scale": (WIDTH,),
    "w1": (INNER, WIDTH),
    "w3": (INNER, WIDTH),
    "w2": (WIDTH, INNER),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "net.table.weight": (SYMBOLS, WIDTH),
    **{f"net.stack.{i}.{name}.weight": shape for i in (0, 1) for name, shape in BLOCK.items()},
    "net.scale.weight": (WIDTH,),
    "readout.weight": (SYMBOLS, WIDTH),
}
MATRICES = {name for name in SHAPES if len(SHAPES[name]) == 2}


def norm(x: Tensor, scale: Tensor) -> Tensor:
    size = (x.pow(2).mean(-1, keepdim=True) + FLOOR).sqrt()
    return x / size * scale


def rotated(heads: Tensor) -> Tensor:
    """Turn each pair of ``[batch, T, heads, HEAD]``, taken as a complex number, by its angle."""
    pairs = torch.complex(heads[..., : HEAD // 2], heads[..., HEAD // 2 :])
    speeds = [BASE ** (-2 * place / HEAD) for place in range(HEAD // 2)]
    angles = torch.outer(torch.arange(heads.shape[1]).float(), torch.tensor(speeds))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def reference(state: dict[str, Tensor], tokens: Tensor, mask: Tensor) -> Tensor:
    """Logits ``[batch, T, SYMBOLS]`` of ``i64[batch, T]``; ``mask`` is 0 where one is hidden."""
    x = state["net.table.weight"][tokens]
    hidden = torch.where(mask.bool(), 0.0, -torch.inf)[:, None, None, :]
    for index in range(CONFIG["depth"]):
        own = {name: state[f"net.stack.{index}.{name}.weight"] for name in BLOCK}
        y = norm(x, own["mixer.before"])
        q, k, v = (
            (y @ own[f"mixer.heads.w{part}"].T).view(*tokens.shape, -1, HEAD) for part in "qkv"
        )
        q = rotated(norm(q, own["mixer.heads.scale_q"]))
        k = rotated(norm(k, own["mixer.heads.scale_k"]))
        k, v = (part.repeat_interleave(HEADS // SHARED, dim=2) for part in (k, v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / HEAD**0.5 + hidden
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
        x = x + mixed.flatten(2) @ own["mixer.wo"].T
        y = norm(x, own["ffn_scale"])
        x = x + (silu(y @ own["w1"].T) * (y @ own["w3"].T)) @ own["w2"].T
    return norm(x, state["net.scale.weight"]) @ state["readout.weight"].T


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the page shows."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"^```python\n(# orchid\.py\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert len(found.group(1).splitlines()) < 60
    path = tmp_path_factory.mktemp("family") / "orchid.py"
    path.write_text(found.group(1), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(plugin: Path) -> Path:
    return write_model(plugin.with_name("model"), CONFIG, SHAPES, dtype=torch.float32)


@pytest.fixture(scope="module")
def artifact(model: Path, plugin: Path) -> Path:
    out = model.with_name("out")
    words = ("compile", model, "-o", out, "--plugin", plugin, "--samples", 8, "--length", 32)
    assert run([*map(str, words), "--no-report"]) == 0
    return out


class Command:
    """A command in this process; gives what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> str:
        code = run([*map(str, words)])
        out, error = self.capsys.readouterr()
        assert code == 0, error
        return out


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, SYMBOLS, (3, 17), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[1, 11:], mask[2, :4] = 0, 0
    return tokens, mask


@torch.no_grad()
def test_the_checkpoint_gives_the_logits_of_the_reference(model: Path, plugin: Path) -> None:
    tokens, mask = batch()
    state = load_file(model / "model.safetensors")
    module = qdc.load_original(model, plugins=plugin)
    assert set(module.state_dict()) == set(state)
    whole = reference(state, tokens, torch.ones_like(tokens))
    assert float(whole.std()) > 0.5
    torch.testing.assert_close(module(tokens), whole, atol=TOLERANCE, rtol=0)
    real, due = mask.bool(), reference(state, tokens, mask)
    torch.testing.assert_close(module(tokens, mask)[real], due[real], atol=TOLERANCE, rtol=0)
    assert float((due - whole)[real].abs().max()) > 0.01


@torch.no_grad()
def test_the_artifact_gives_the_logits_of_its_decoded_weights(
    model: Path, artifact: Path, plugin: Path
) -> None:
    tokens, mask = batch()
    module = qdc.load(artifact, plugins=plugin, backend="reference")
    state = without_rotations(module)
    before, real = load_file(model / "model.safetensors"), mask.bool()
    assert {name for name in before if not torch.equal(before[name], state[name])} == MATRICES
    due = reference(state, tokens, mask)
    torch.testing.assert_close(module(tokens, mask)[real], due[real], atol=TOLERANCE, rtol=0)


def test_the_published_names_are_those_of_the_layers(
    artifact: Path, plugin: Path, command: Command
) -> None:
    settings = json.loads((artifact / "config.json").read_text())["quantization_config"]
    assert {f"{layer}.weight" for layer in settings["layers"]} == MATRICES
    assert settings["plugins"][0].startswith("orchid.py sha256:")
    shown = command("show", artifact, "--plugin", plugin)
    for node in ("net.stack.0.mixer.heads.rotary", "net.stack.1.silu", "net.stack.1.mixer.wo"):
        assert f"%{node} " in shown


def test_the_plugin_is_needed(model: Path, artifact: Path) -> None:
    for load, folder in ((qdc.load, artifact), (qdc.load_original, model)):
        with pytest.raises(UnsupportedModel, match="implements OrchidForDiffusion") as caught:
            load(folder)
        assert "--plugin FILE" in caught.value.help


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"ffn": "relu"}, ["ffn: Input should be 'swiglu' (given 'relu')"]),
        ({"window": 512, "depth": 0}, ["window", "depth"]),
        ({"head_size": 9}, ["heads of odd width 9 cannot be rotated"]),
        ({"shared_heads": 3}, ["query_heads 4 is no multiple of shared_heads 3"]),
        ({"hidden_act": "gelu"}, ["hidden_act"]),
    ],
)
def test_a_variant_is_refused_by_its_published_field(
    fields: dict[str, object], where: list[str], model: Path, plugin: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **fields}), encoding="utf-8")
    shutil.copy(model / "model.safetensors", tmp_path)
    with pytest.raises(
        UnsupportedModel, match="a variant of orchid that is not implemented"
    ) as caught:
        qdc.load_original(tmp_path, plugins=plugin)
    assert len(caught.value.where) == len(where)
    assert all(found.startswith(due) for found, due in zip(caught.value.where, where, strict=True))


def test_it_is_listed_with_its_origin_and_nothing_proved(plugin: Path, command: Command) -> None:
    listed = json.loads(command("families", "--plugin", plugin, "--json"))["families"]
    origins = {family["name"]: family["origin"] for family in listed}
    assert origins.pop("orchid") == "orchid.py"
    assert set(origins.values()) == {None}
    assert listed[-1]["proved"] == []
    text = command("families", "--plugin", plugin)
    assert "  defined    by orchid.py\n" in text
    assert "  proved     nothing\n" in text


def test_commands_that_open_models_take_it(
    model: Path, artifact: Path, plugin: Path, command: Command
) -> None:
    for words in (
        ("run", artifact, "for i in <mask>(10):"),
        ("run", model, "for i in <mask>(10):"),
        ("plan", model, "--samples", 8, "--length", 32),
        ("inspect-calibration", model, "--samples", 4, "--length", 16, "--ratios", "0.5"),
        ("export", artifact, "-o", artifact.with_name("dense"), "--verify"),
    ):
        assert command(*words, "--plugin", plugin)


def test_an_installed_family_is_found(
    plugin: Path, model: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "orchid_package-1.0.dist-info"
    about.mkdir()
    shutil.copy(plugin, tmp_path / "orchid_package.py")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: orchid-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[qdc.families]\norchid = orchid_package:ORCHID\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "%net.stack.0.w1 " in command("show", model, "--only", "net.stack.0.*")
    assert "  defined    by orchid_package:ORCHID\n" in command("families")


def test_transformers_loads_it(
    model: Path, artifact: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_plugins", [])
    qdc.hf.use_plugins(plugin)
    qdc.hf.use_plugins(plugin)
    tokens, mask = batch()
    found = AutoModel.from_pretrained(artifact, dtype=torch.float32)
    due = qdc.load(artifact, plugins=plugin, backend="reference")(tokens, mask)
    assert torch.equal(found(tokens, attention_mask=mask).logits, due)
