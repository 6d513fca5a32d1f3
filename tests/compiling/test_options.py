"""Options of compiles and exports: one description, and Python's signature agrees with it."""

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

import qdc
from qdc import CompareOptions, CompileOptions, ExportOptions, QdcError
from qdc.comparing.options import CompareKeywords
from qdc.compiling.job import plan_job
from qdc.compiling.options import CompileKeywords
from qdc.errors import InvalidCalibration, InvalidPipeline
from qdc.exporting.options import ExportKeywords
from qdc.options import Options
from qdc.pipeline.registry import standard_registry
from qdc.planning.options import PlanOptions
from qdc.streaming.memory import states_memory

FUNCTIONS: dict[str, tuple[Any, type[Options], Any]] = {
    "compile": (qdc.compile, CompileOptions, CompileKeywords),
    "export": (qdc.export, ExportOptions, ExportKeywords),
    "compare": (qdc.compare, CompareOptions, CompareKeywords),
}
NEEDED: dict[str, Any] = {"model_dir": "m", "out": "o"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_documentation_and_keywords_agree_with_the_fields(name: str) -> None:
    function, options, keywords = FUNCTIONS[name]
    parameters = dict(inspect.signature(function).parameters)
    assert parameters.pop("progress").default is None
    named = [name for name in options.ordered() if name not in options.positional]
    assert list(parameters) == [*options.positional, *named]
    documented = inspect.getdoc(function) or ""
    for field, parameter in parameters.items():
        info = options.model_fields[field]
        empty = parameter.default is inspect.Parameter.empty
        assert empty == info.is_required()
        assert empty or parameter.default == info.default
        first = (info.description or "").partition("\n")[0]
        assert first
        assert f"{field}: {first}" in " ".join(documented.split())
    assert set(get_type_hints(keywords)) == set(parameters) - set(options.positional)
    required = {n for n, info in options.model_fields.items() if info.is_required()}
    assert keywords.__required_keys__ == required - set(options.positional)


def test_calls_that_do_not_fit_are_refused_as_python_refuses_them() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'out'"):
        qdc.compile("m")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no argument is called 'sampels'; did you mean samples"):
        qdc.compile("m", out="o", sampels=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="multiple values for argument 'passes'"):
        CompileOptions.from_call("compile", "m", "rtn", passes="rtn", out="o")
    with pytest.raises(QdcError, match="cannot be asked") as caught:
        qdc.compile("m", out="o", samples="many")  # type: ignore[call-overload]
    assert "samples: input should be a valid integer" in str(caught.value)


def test_a_ready_object_stands_for_all_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[CompileOptions, object]] = []
    monkeypatch.setattr("qdc.api.compile_model", lambda *given: asked.append(given))
    ready = CompileOptions(model_dir=Path("m"), out=Path("o"), passes="rtn", samples=4)
    qdc.compile(ready)
    qdc.compile("m", "rtn", out="o", samples=4, progress=print)
    assert asked == [(ready, None), (ready, print)]


def test_options_are_frozen_and_closed() -> None:
    options = CompileOptions.parse(**NEEDED)
    with pytest.raises(ValidationError, match="frozen"):
        options.passes = "rtn"
    with pytest.raises(QdcError, match="no option is called 'pases'; did you mean passes"):
        CompileOptions.parse(**NEEDED, pases="rtn")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"states": "f64"}, QdcError, "calibration states cannot be held in 'f64'"),
        ({"host_memory": "lots"}, QdcError, "--host-memory is no size: 'lots'"),
        ({"text_field": "t"}, InvalidCalibration, "--text-field is given, and no file"),
        ({"text_field": "t", "chat_fields": "q,a"}, InvalidCalibration, "need one of them"),
        ({"resume": True, "restart": True}, InvalidPipeline, "--restart discards it"),
        ({"resume": True, "dump_after": "all"}, InvalidPipeline, "goes on from another"),
        ({"stop_after": "pack", "force": True}, InvalidPipeline, "--force replaces an artifact"),
        ({"dump_dir": "d"}, InvalidPipeline, "nothing is dumped"),
    ],
)
def test_contradictions_are_refused_at_once(
    given: dict[str, Any], kind: type[QdcError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        CompileOptions.parse(**NEEDED, **given)
    assert message in str(caught.value)


def test_values_are_read_as_users_write_them() -> None:
    options = CompileOptions.parse(
        **NEEDED, host_memory="8K", plugins="p.py", dump_after="a, b", calibration="c.jsonl"
    )
    assert (options.host_memory, options.states_limit) == (8192, 8192)
    assert (options.plugins, options.dump_after) == ((Path("p.py"),), ("a", "b"))
    assert CompileOptions.parse(**NEEDED).states_limit == states_memory()
    assert CompileOptions.parse(**NEEDED, stop_after="x", dump_after=["y"]).dumped == ("y", "x")


def test_the_call_that_asks_for_the_same_can_be_pasted() -> None:
    options = CompileOptions.parse(**NEEDED, plugins=["p.py"], host_memory="1K", resume=True)
    text = options.call("again")
    assert eval(text, {"again": CompileOptions.parse}) == options  # our own text


def test_overrides_are_the_options_of_each_command() -> None:
    planned = PlanOptions.parse(model_dir="m", samples=3, pack="within").overrides
    given = {"samples": 3, "length": None, "pack": "within", "isolate": None, "geometry": None}
    assert planned == given
    assert CompileOptions.parse(**NEEDED, seed=1).overrides["seed"] == 1


def test_a_job_is_what_was_asked_for_and_what_follows(tmp_path: Path) -> None:
    given = {
        "model_dir": "m",
        "out": tmp_path / "out",
        "passes": "rtn-lower,pack",
        "frontend": "fx",
    }
    job = plan_job(CompileOptions.parse(**given, dump_after="pack"), standard_registry())
    assert str(job.plan) == "rtn-lower,pack"
    assert (job.front_end, job.device, job.out) == ("fx", "cpu", tmp_path / "out")
    assert job.dump_places == {1}
    assert (job.dump_folder, job.repro_folder) == (tmp_path / "out-dumps", tmp_path / "out-repro")
    assert job.command.startswith("qdc.compile(model_dir='m', ")
    stopped = plan_job(CompileOptions.parse(**given, stop_after="rtn-lower"), standard_registry())
    assert (stopped.backend, str(stopped.plan)) == (None, "rtn-lower")
