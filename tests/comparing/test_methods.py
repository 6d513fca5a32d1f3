"""Lists of methods: where a pipeline ends, what it is called, what is refused at once."""

import pytest

from qdc.comparing.methods import Method, overrides, parse_methods
from qdc.comparing.vary import variants
from qdc.errors import InvalidPipeline, MissingAnnotation, UnknownName
from qdc.pipeline.registry import Registry, standard_registry

BARE = "stages(calibrate-mcs{samples=8},sensitivity,gptq-lower),pack"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return standard_registry()


def named(registry: Registry, *texts: str) -> dict[str, str]:
    return {method.name: method.pipeline for method in parse_methods(texts, registry)}


def test_commas_of_a_pipeline_separate_no_methods(registry: Registry) -> None:
    text = f"rtn,stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack,gptq, mine = {RTN}"
    assert named(registry, text) == {
        "rtn": "rtn",
        "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack": (
            "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack"
        ),
        "gptq": "gptq",
        "mine": RTN,
    }


RTN = "quantize-vocab,rtn-lower{group=32},pack"


def test_pass_before_a_preset_belongs_to_its_pipeline(registry: Registry) -> None:
    found = named(registry, "quantize-vocab{bits=8},rtn,data-free")
    assert list(found) == ["quantize-vocab{bits=8},rtn", "data-free"]


def test_presets_bring_what_their_publication_counts(registry: Registry) -> None:
    gptq, renamed, free = parse_methods(["gptq,again=gptq,data-free"], registry)
    assert (gptq.nominal_bits, gptq.source) == (2, "arXiv 2210.17323")
    assert (renamed.name, renamed.source) == ("again", gptq.source)
    assert (free.nominal_bits, free.source) == (None, "")


def test_all_are_the_presets_and_further_ones_may_follow(registry: Registry) -> None:
    found = named(registry, "all,gptq", f"mine={RTN}")
    assert list(found) == [*registry.presets, "mine"]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("rtn,gpqt", UnknownName, "did you mean gptq"),
        ("stages(calibrate-mcs,gptq-lowr),pack", UnknownName, "gptq-lower"),
        ("mine=rtn,mine=gptq", InvalidPipeline, "two methods are called 'mine'"),
        ("rtn-lower{group=}", InvalidPipeline, "expected a value"),
        ("rtn-lower{grup=64},pack", InvalidPipeline, "did you mean group"),
        ("rtn,calibrate-mcs", MissingAnnotation, "backend reference reads @packed"),
        ("gptq{group=64}", InvalidPipeline, "takes no options"),
        ("rtn,", InvalidPipeline, "expected a pass name"),
    ],
)
def test_mistakes_are_named(
    text: str, kind: type[Exception], said: str, registry: Registry
) -> None:
    with pytest.raises(kind) as error:
        parse_methods([text], registry)
    assert said in str(error.value)


def test_an_option_goes_to_those_that_have_it_and_have_not_written_it(registry: Registry) -> None:
    gptq, free, own = parse_methods([f"gptq,data-free,own={BARE}"], registry)
    given = {"samples": 4, "seed": 1}

    def used(method: Method) -> tuple[dict[str, object], tuple[str, ...]]:
        return overrides(method.plan, method.pipeline, given, registry)

    assert used(gptq) == (given, ())
    assert used(free) == ({}, ())
    assert used(own) == ({"seed": 1}, ("it writes its own samples",))


def test_no_option_goes_to_a_pass_that_does_not_read_it_as_it_is(registry: Registry) -> None:
    """Compiling refuses ``--seed`` and ``--samples`` where activations are not measured."""
    text = "rtn-lower{bits=4},quantize-activations{bits=4%s},pack"
    plain, searching = parse_methods([text % "", text % " clip=search"], registry)
    given = {"samples": 4, "seed": 1}
    assert overrides(plain.plan, plain.pipeline, given, registry) == ({}, ())
    assert overrides(searching.plan, searching.pipeline, given, registry) == (given, ())
    clean = {"geometry": "clean"}
    kept, told = variants((plain, searching), (), registry, clean)
    assert kept.pipeline == str(plain.plan)
    assert "geometry=clean" in told.pipeline
