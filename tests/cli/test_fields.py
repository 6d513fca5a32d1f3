"""Flags, defaults and texts of commands are those of the fields of their options."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BeforeValidator, Field, TypeAdapter
from pydantic.fields import FieldInfo

import qdc
from qdc.cli import run
from qdc.cli.fields import from_fields
from qdc.cli.options import InspectionOptions, OptOptions, ShowOptions, app
from qdc.comparing.options import CompareOptions
from qdc.compiling.compiler import compile_model
from qdc.compiling.options import CompileOptions
from qdc.evaluation.options import EvaluationOptions
from qdc.exporting.options import ExportOptions
from qdc.options import Options, as_list, as_paths, option, switch
from qdc.planning.options import ForecastOptions
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.options import RunOptions
from qdc.serve.limits import ServeOptions
from tests.cli.conftest import Command

OPTIONS: dict[str, tuple[type[Options], ...]] = {
    "compile": (CompileOptions,),
    "plan": (ForecastOptions,),
    "compare": (CompareOptions,),
    "show": (ShowOptions,),
    "opt": (OptOptions,),
    "run": (RunOptions,),
    "generate": (DecodeOptions, RunOptions),
    "chat": (DecodeOptions, RunOptions),
    "eval": (EvaluationOptions,),
    "inspect-calibration": (InspectionOptions,),
    "export": (ExportOptions,),
    "serve": (ServeOptions,),
}
OWN = {
    "compile": {"timings", "remarks"},
    "run": {"model", "text", "gap", "steps", "special"},
    "generate": {"model", "prompt", "special", "chat", "system", "turns", "verifier"},
    "chat": {"model", "system", "turns"},
    "eval": {"markdown"},
    "compare": {"markdown"},
}
"""What a command has besides, all of them --json and --help."""
SILENT = {"stop_early"}
"""Fields that are no options of the command line."""


def form(field: FieldInfo) -> Any:
    """The type of a field, with what checks its values."""
    return Annotated[(field.annotation, "checked", *field.metadata)]


@pytest.mark.parametrize("name", OPTIONS)
def test_flags_defaults_and_texts_are_those_of_the_fields(
    name: str, qdc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(qdc(name, "--help").split())
    command: Any = typer.main.get_command(app)
    parameters = {each.name: each for each in command.commands[name].params}
    fields = {n: info for kind in OPTIONS[name] for n, info in kind.model_fields.items()}
    assert set(parameters) - {"json"} - OWN.get(name, set()) == set(fields) - SILENT
    for field in fields.keys() - SILENT:
        info, parameter = fields[field], parameters[field]
        text = (info.description or "").partition("\n")[0]
        assert text in shown or info.default is True
        assert parameter.required == info.is_required()
        if not info.is_required() and not isinstance(info.default, tuple | bool):
            # What is shown as another text is read back as the default by the field itself.
            read: TypeAdapter[Any] = TypeAdapter(form(info))
            default = parameter.default
            assert info.default == (None if default is None else read.validate_python(default))


def test_every_command_with_options_takes_them_from_fields() -> None:
    command: Any = typer.main.get_command(app)
    few = {name for name, each in command.commands.items() if len(each.params) <= 5}
    assert set(command.commands) - few == set(OPTIONS)


class Made(Options):
    """One option of every form."""

    path: Annotated[Path, option("PATH", "A path", argument=True)]
    count: Annotated[int, Field(ge=1, le=9), option("N", "A count", ranged=True)] = 3
    kind: Annotated[Literal["a", "b"], option("NAME", "A kind")] = "a"
    names: Annotated[tuple[str, ...], BeforeValidator(as_list), option("LIST", "Names")] = ("x",)
    files: Annotated[
        tuple[Path, ...],
        BeforeValidator(as_paths),
        option("FILE", "Files", "--file", repeated=True),
    ] = ()
    pages: Annotated[bool, switch("Write pages", "--no-pages", help="Write no page")] = True
    size: Annotated[
        int,
        BeforeValidator(lambda given: len(str(given))),
        option("SIZE", "A size", more="In letters", verbatim=True, shown="xx"),
    ] = 2
    inner: int = 7


class Extended(Made):
    """The same and one in front."""

    first: Annotated[bool, switch("First of all", before="count")] = False


@pytest.fixture
def call() -> Callable[..., list[Options]]:
    """Call a command with ``Extended``; gives the options that it got."""

    def caller(*arguments: str) -> list[Options]:
        found: list[Options] = []
        made = typer.Typer(add_completion=False, rich_markup_mode=None)

        @made.command()
        @from_fields
        def command(asked: Extended, other: Annotated[int, typer.Option()] = 1) -> None:
            """Do nothing."""
            found.append(asked)

        typer.main.get_command(made)(list(arguments), standalone_mode=False)
        return found

    return caller


def test_what_is_given_is_known(call: Callable[..., list[Options]]) -> None:
    [plain] = call("p")
    assert plain == Extended(path=Path("p"))
    assert plain.model_fields_set == {"path"}
    [same] = call("p", "--count", "3")
    assert same.model_fields_set == {"path", "count"}
    [full] = call(
        "p", "--first", "--count", "4", "--kind", "b", "--names", "u, v", "--file", "f", "--file",
        "g", "--no-pages", "--size", "abc",
    )  # fmt: skip
    assert full.model_dump(exclude={"inner"}) == {
        "path": Path("p"), "first": True, "count": 4, "kind": "b", "names": ("u", "v"),
        "files": (Path("f"), Path("g")), "pages": False, "size": 3,
    }  # fmt: skip


def test_the_help_lists_them_in_order(
    call: Callable[..., list[Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    call("--help")
    lines = capsys.readouterr().out.partition("Options:\n")[2].splitlines()
    flags = [line.split()[0] for line in lines]
    assert flags == [
        "--first", "--count", "--kind", "--names", "--file", "--no-pages", "--size", "--other",
        "--help",
    ]  # fmt: skip
    text = " ".join(" ".join(lines).split())
    assert "--count N A count [default: 3; 1<=x<=9]" in text
    assert "--names LIST Names [default: x]" in text
    assert "--no-pages Write no page --size SIZE A size [default: xx]" in text


def test_a_compile_of_the_command_line_is_that_of_python(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both call one function, with equal options."""
    from qdc import api
    from qdc.cli import compile as command

    both = [vars(module)["compile_model"] for module in (api, command)]
    assert both == [compile_model, compile_model]
    asked: list[CompileOptions] = []

    def note(options: CompileOptions, *_: object) -> None:
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compile_model", note)
    monkeypatch.setattr(api, "compile_model", note)
    out = str(tmp_path / "out")
    code = run(
        ["compile", str(model), "-o", out, "--passes", "rtn", "--no-report", "--seed", "2",
         "--dump-after", "pack,rtn-lower", "--host-memory", "1M"]
    )  # fmt: skip
    assert code == 130
    with pytest.raises(KeyboardInterrupt):
        qdc.compile(
            model, "rtn", out=out, write_report=False, seed=2, host_memory=1 << 20,
            dump_after=["pack", "rtn-lower"],
        )  # fmt: skip
    first, second = asked
    assert first == second
    assert first.model_fields_set == second.model_fields_set


def test_options_are_handed_on_as_objects() -> None:
    """No command hands options on one by one: what has many takes them as an object."""
    from qdc.cli.compile import compile_command
    from qdc.cli.evaluate import evaluate_command
    from qdc.cli.generate import generate_command
    from qdc.cli.serve import serve_command
    from qdc.cli.tasks import tasks_command
    from qdc.compiling.job import plan_job
    from qdc.planning.forecast import forecast

    for function in (
        compile_command, evaluate_command, generate_command, serve_command, tasks_command,
        plan_job, forecast,
    ):  # fmt: skip
        assert len(inspect.signature(function).parameters) <= 8
