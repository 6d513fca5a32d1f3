"""Names and their owners: built-ins, installed packages, plugin files."""

import hashlib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from qdc.errors import DuplicateName, QdcError, UnknownName
from qdc.format.codec import Codec, Lowered
from qdc.ir.annotation import Annotation
from qdc.models.families import BUILT_IN, FAMILIES
from qdc.models.family import Family
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.passbase import Kinds, Pass
from qdc.pipeline.registry import Registry, standard_registry
from qdc.runtime.decoding.strategies import BUILT_IN as BUILT_IN_STRATEGIES

KINDS = "pass, backend, family or strategy"

PLUGIN = '''
"""A plugin."""
from typing import ClassVar
from qdc import Pass

class {cls}(Pass):
    """Do nothing."""
    name: ClassVar[str] = "{name}"

    def run(self, unit):
        pass
'''

CLASH = """
from qdc import Annotation, Pass

class Orders(Annotation):
    tag = "orders"

    def text(self):
        return ""

class Clash(Pass):
    name = "clash"
    provides = (Orders,)

    def run(self, unit):
        pass
"""


class SecondPack(Pass):
    """Claims a name that is taken."""

    name: ClassVar[str] = "pack"


class FalseOrders(Annotation):
    """Claims a tag that is taken."""

    tag: ClassVar[str] = "orders"


class WritesFalseOrders(Pass):
    """Brings the tag along."""

    name: ClassVar[str] = "false-orders"
    provides: ClassVar[Kinds] = (FalseOrders,)


class FalseUniform(Codec):
    """Claims a codec name that is taken."""

    name: ClassVar[str] = "uniform"


class FalseRtn(Lowered):
    """A layer in the codec whose name is taken."""

    tag: ClassVar[str] = "false-rtn"
    codec: FalseUniform


class WritesFalseRtn(Pass):
    """Brings the codec along."""

    name: ClassVar[str] = "false-rtn"
    provides: ClassVar[Kinds] = (FalseRtn,)


class Vague(Lowered):
    """Does not say which codec."""

    tag: ClassVar[str] = "vague"


class WritesVague(Pass):
    """Brings it along."""

    name: ClassVar[str] = "vague"
    provides: ClassVar[Kinds] = (Vague,)


def write_plugin(folder: Path, name: str, cls: str = "Mine", file: str = "mine.py") -> Path:
    path = folder / file
    path.write_text(PLUGIN.format(cls=cls, name=name))
    return path


def test_built_ins_are_there() -> None:
    registry = standard_registry()
    ours = {"default", "best", "two", "small", "large", "release", "paper", "uniform"}
    assert set(registry.presets) >= ours | {"rtn", "gptq", "gptaq", "arb-rc-2", "data-free"}
    assert registry.find_pass("pack").name == "pack"
    assert registry.find_backend("reference").name == "reference"
    assert {"multi-binary", "uniform"} <= set(registry.codecs())
    assert {"kept", "moment", "factor", "salience", "orders", "packed", "daq", "rtn"} <= set(
        registry.annotations()
    )
    assert registry.plugins == []


def test_a_second_pass_of_one_name_names_both_owners() -> None:
    with pytest.raises(DuplicateName, match="two owners claim the name 'pack'") as caught:
        standard_registry().add(SecondPack)
    first, second = caught.value.where
    assert first == "qdc.passes.pack.Pack"
    assert second.endswith("test_registry.SecondPack")


def test_the_same_class_twice_is_no_conflict() -> None:
    registry = Registry()
    registry.add(SecondPack)
    registry.add(SecondPack)
    assert registry.passes == {"pack": SecondPack}


def test_a_second_tag_names_both_owners() -> None:
    registry = standard_registry()
    registry.add(WritesFalseOrders)
    with pytest.raises(DuplicateName, match="the name '@orders'") as caught:
        registry.annotations()
    assert caught.value.where[0] == "qdc.ir.annotations.Orders"
    assert caught.value.where[1].endswith("FalseOrders")


def test_a_second_codec_names_both_owners() -> None:
    registry = standard_registry()
    registry.add(WritesFalseRtn)
    with pytest.raises(DuplicateName, match="the name 'uniform'") as caught:
        registry.codecs()
    assert caught.value.where[0] == "qdc.format.uniformgrid.UniformGrid"
    assert caught.value.where[1].endswith("FalseUniform")


def test_clashes_of_a_plugin_are_found_as_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "clash.py"
    path.write_text(CLASH)
    with pytest.raises(DuplicateName, match="the name '@orders'") as caught:
        standard_registry([path])
    assert caught.value.where[1] == "Orders of clash.py"


def test_a_lowering_says_which_codec_it_carries() -> None:
    registry = Registry()
    registry.add(WritesVague)
    with pytest.raises(QdcError, match="Vague does not say which codec it carries"):
        registry.codecs()


@pytest.mark.parametrize("name", ["stages", "my pass", "", "1st"])
def test_a_name_that_no_pipeline_can_hold_is_refused(name: str) -> None:
    odd = type("Odd", (Pass,), {"name": name, "__module__": __name__})
    with pytest.raises(QdcError, match="cannot name a pass"):
        Registry().add(odd)


def test_a_pass_cannot_take_the_name_of_a_preset(tmp_path: Path) -> None:
    with pytest.raises(DuplicateName, match="'default'") as caught:
        standard_registry([write_plugin(tmp_path, "default")])
    assert caught.value.where[0] == "the preset default"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("referense", "did you mean reference?"), ("zz", "known: cpu, gguf, reference, triton")],
)
def test_an_unknown_backend_offers_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UnknownName) as caught:
        standard_registry().find_backend(text)
    assert caught.value.what == f"no backend is called {text!r}"
    assert caught.value.help == nearest


def test_a_plugin_file_is_recorded_with_its_digest(tmp_path: Path) -> None:
    path = write_plugin(tmp_path, "my-pass")
    registry = standard_registry([path, path])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(registry.plugins) == {f"mine.py sha256:{digest}"}
    assert registry.find_pass("my-pass").__doc__ == "Do nothing."
    assert list(tmp_path.iterdir()) == [path], "no cache is left beside the user's file"


def test_an_edited_plugin_is_read_again(tmp_path: Path) -> None:
    standard_registry([write_plugin(tmp_path, "one-pass")])
    registry = standard_registry([write_plugin(tmp_path, "two-pass")])
    assert "two-pass" in registry.passes
    assert "one-pass" not in registry.passes


def test_two_plugins_that_claim_one_name_are_refused(tmp_path: Path) -> None:
    files = [write_plugin(tmp_path, "twice", file=f"{n}.py") for n in "ab"]
    with pytest.raises(DuplicateName, match="'twice'") as caught:
        standard_registry(files)
    assert caught.value.where == ("Mine of a.py", "Mine of b.py")


@pytest.mark.parametrize(
    ("file", "source", "what"),
    [
        ("gone.py", None, "no such plugin file"),
        ("mine.txt", "x = 1", "the plugin is no Python file"),
        ("mine.py", "def", "the plugin does not import: SyntaxError"),
        ("mine.py", "import no_such_module_at_all", "ModuleNotFoundError: No module named"),
        ("mine.py", "raise SystemExit(3)", "the plugin does not import: SystemExit: 3"),
        ("mine.py", "x = 1", f"defines no {KINDS}"),
        (
            "mine.py",
            "from qdc.passes.pack import Pack",
            f"defines no {KINDS}",
        ),
        (
            "mine.py",
            "from qdc import Pass\nclass A(Pass): pass",
            "the pass cannot be used: it has no name",
        ),
    ],
)
def test_a_bad_plugin_file_is_refused(
    file: str, source: str | None, what: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    if source is not None:
        path.write_text(source)
    with pytest.raises(QdcError) as caught:
        standard_registry([path])
    assert what in caught.value.what


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [entry for entry in found if entry.group == group]

    monkeypatch.setattr("qdc.pipeline.registry.entry_points", entry_points)
    return found


def install(found: list[EntryPoint], value: str, group: str = "qdc.passes") -> None:
    found.append(EntryPoint(name="x", value=value, group=group))


def test_installed_passes_and_backends_are_added(
    installed: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(tmp_path, "from-package", file="installed_pass.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(installed, "installed_pass:Mine")
    install(installed, "qdc.backends.reference:Reference", "qdc.backends")
    registry = standard_registry()
    assert "from-package" in registry.passes
    assert registry.plugins == [], "an installed package is no plugin file"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("no_such_module:X", "the installed plugin no_such_module:X does not import"),
        ("qdc.passes.pack:Gone", "the installed plugin qdc.passes.pack:Gone does not import"),
        ("qdc.format.codec:Codec", f"is no {KINDS} with a name"),
        ("qdc.pipeline.passbase:Pass", f"is no {KINDS} with a name"),
        ("qdc.pipeline.backendbase:Backend", f"is no {KINDS} with a name"),
        (
            "qdc.pipeline.registry:standard_registry",
            f"is no {KINDS} with a name",
        ),
    ],
)
def test_a_bad_entry_point_is_refused(value: str, what: str, installed: list[EntryPoint]) -> None:
    install(installed, value)
    with pytest.raises(QdcError) as caught:
        standard_registry()
    assert what in caught.value.what
    assert "uninstall" in caught.value.help


def test_an_installed_pass_cannot_take_a_built_in_name(
    installed: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(tmp_path, "pack", file="installed_twin.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(installed, "installed_twin:Mine")
    with pytest.raises(DuplicateName) as caught:
        standard_registry()
    assert caught.value.where == ("qdc.passes.pack.Pack", "installed_twin.Mine")


def test_a_backend_is_no_pass() -> None:
    registry = standard_registry()
    assert issubclass(registry.find_backend("reference"), Backend)
    with pytest.raises(UnknownName):
        registry.find_pass("reference")


FAMILY = """
from qdc import Family
from qdc.models.dream import DREAM

MINE = ALSO = Family(name={name!r}, architectures=({architecture!r},))
"""


def write_family_plugin(
    folder: Path, name: str, architecture: str = "Mine", file: str = "mine.py"
) -> Path:
    path = folder / file
    path.write_text(FAMILY.format(name=name, architecture=architecture))
    return path


def test_families_are_found_as_objects_and_keep_their_origin(tmp_path: Path) -> None:
    registry = standard_registry([write_family_plugin(tmp_path, "mine")])
    families = registry.families
    assert [family.name for family in families.members[:-1]] == [f.name for f in FAMILIES]
    assert registry.origin(families.members[-1]) == "mine.py"
    assert registry.origin(families.members[0]) == ""
    assert families.find({"architectures": ["Mine"]}) is families.members[-1]
    assert BUILT_IN.find({"architectures": ["Mine"]}) is None
    assert len(registry.plugins) == 1


@pytest.mark.parametrize(
    ("name", "architecture", "claimed"),
    [("dream", "Mine", "dream"), ("mine", "DreamModel", "DreamModel")],
)
def test_a_name_or_an_architecture_has_one_family(
    name: str, architecture: str, claimed: str, tmp_path: Path
) -> None:
    path = write_family_plugin(tmp_path, name, architecture)
    with pytest.raises(DuplicateName, match=f"claim the name '{claimed}'") as caught:
        standard_registry([path])
    assert caught.value.where == (
        "the family dream of qdc",
        f"the family {name} of mine.py",
    )


def test_two_plugins_cannot_claim_one_architecture(tmp_path: Path) -> None:
    files = [write_family_plugin(tmp_path, name, file=f"{name}.py") for name in ("one", "two")]
    with pytest.raises(DuplicateName, match="claim the name 'Mine'") as caught:
        standard_registry(files)
    assert caught.value.where == ("the family one of one.py", "the family two of two.py")


def test_a_family_has_a_name_that_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(QdcError, match="no family can be called 'my family'"):
        standard_registry([write_family_plugin(tmp_path, "my family")])


def test_faults_of_a_table_are_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from qdc import Family\nA = Family(name='a', architectures=())\n")
    with pytest.raises(QdcError, match="does not import: ValueError: the family a: arch") as caught:
        standard_registry([path])
    assert caught.value.where == ("mine.py, line 2",)


def test_installed_families_are_added(
    installed: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family_plugin(tmp_path, "from-package", file="installed_family.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(installed, "installed_family:MINE", "qdc.families")
    registry = standard_registry()
    found = registry.families.members[-1]
    assert (found.name, registry.origin(found)) == ("from-package", "installed_family:MINE")
    assert registry.plugins == []


def test_the_class_of_families_is_no_family(installed: list[EntryPoint]) -> None:
    install(installed, "qdc.models.family:Family", "qdc.families")
    with pytest.raises(QdcError, match=f"is no {KINDS} with a name"):
        standard_registry()


STRATEGY = """
from qdc.runtime.decoding.llada import Random

class Mine(Random):
    name = {name!r}
"""


def write_strategy_plugin(folder: Path, name: str, file: str = "mine.py") -> Path:
    path = folder / file
    path.write_text(STRATEGY.format(name=name))
    return path


def test_strategies_of_files_and_of_packages_are_added(
    installed: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_strategy_plugin(tmp_path, "from-package", "installed_strategy.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(installed, "installed_strategy:Mine", "qdc.strategies")
    registry = standard_registry([write_strategy_plugin(tmp_path, "mine")])
    assert list(registry.strategies) == [*BUILT_IN_STRATEGIES, "from-package", "mine"]
    assert registry.origin(registry.strategies["mine"]) == "mine.py"
    assert registry.origin(registry.strategies["from-package"]) == "installed_strategy:Mine"
    assert registry.origin(registry.strategies["random"]) == ""
    assert "mine" not in registry.passes


def test_a_strategy_has_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DuplicateName, match="'threshold'") as caught:
        standard_registry([write_strategy_plugin(tmp_path, "threshold")])
    assert caught.value.where[0] == "qdc.runtime.decoding.llada.Threshold"
    with pytest.raises(QdcError, match="no strategy can be called 'my strategy'"):
        standard_registry([write_strategy_plugin(tmp_path, "my strategy")])


def test_one_architecture_is_not_taken_for_its_letters() -> None:
    with pytest.raises(ValueError, match=r"is no tuple, as \('AForDiffusion',\) is"):
        Family(name="a", architectures="AForDiffusion")  # type: ignore[arg-type]
