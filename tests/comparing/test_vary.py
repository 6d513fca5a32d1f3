"""``--vary``: every value, for every method that has the option."""

import pytest

from qdc.comparing.methods import parse_methods
from qdc.comparing.vary import Axis, Variant, parse_axis, variants
from qdc.errors import InvalidPipeline, UnknownName
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import Registry, standard_registry


@pytest.fixture(scope="module")
def registry() -> Registry:
    return standard_registry()


def made(registry: Registry, methods: str, *axes: str) -> tuple[Variant, ...]:
    found = parse_methods([methods], registry)
    return variants(found, [parse_axis(text) for text in axes], registry)


def test_each_value_is_a_pipeline_that_says_so(registry: Registry) -> None:
    found = made(registry, "gptq,data-free", "geometry=clean,mcs")
    assert [each.name for each in found] == [
        "gptq geometry=clean",
        "gptq geometry=mcs",
        "data-free",
    ]
    assert "calibrate-mcs{geometry=clean}" in found[0].pipeline
    assert "calibrate-mcs{geometry=mcs}" in found[1].pipeline
    assert [each.lacks for each in found] == [(), (), ("geometry",)]


def test_the_default_value_is_the_method_as_it_is(registry: Registry) -> None:
    """Its results are shared. A geometry has no value by default: the model decides."""
    found, _ = made(registry, "gptq", "masked-weight=1,2")
    assert str(build_plan(found.pipeline, registry)) == str(build_plan("gptq", registry))


def test_a_value_replaces_what_the_method_has_written(registry: Registry) -> None:
    written, other = made(registry, "release", "compensation=diag,exact")
    assert "compensation=diag" in written.pipeline
    assert "compensation" not in other.pipeline
    assert "feedback=false" in other.pipeline


def test_an_option_that_goes_not_with_a_value_is_left_out_and_named(registry: Registry) -> None:
    clean, masked = made(registry, "release", "geometry=clean,mcs")
    assert clean.dropped == ("prefix=0.25",)
    assert "prefix" not in clean.pipeline
    assert masked.dropped == ()
    assert "prefix=0.25" in masked.pipeline


def test_axes_are_crossed(registry: Registry) -> None:
    found = made(registry, "gptq", "geometry=clean,mcs", "search=clip,minmax")
    assert [dict(each.settings) for each in found] == [
        {"geometry": geometry, "search": search}
        for geometry in ("clean", "mcs")
        for search in ("clip", "minmax")
    ]
    assert len({each.pipeline for each in found}) == 4


def test_a_value_that_some_methods_refuse_is_their_error_alone(registry: Registry) -> None:
    found = made(registry, "gptq,default", "bits=2,8")
    assert [each.name for each in found if each.error] == ["default bits=2"]
    assert "quantize-vocab refuses bits" in found[2].error


def test_two_options_that_a_value_leaves_unread_are_left_out_and_named(registry: Registry) -> None:
    found = made(registry, "bpdq,pt2", "feedback=true,false")
    assert not any(each.error for each in found)
    assert [each.dropped for each in found] == [(), ("rounds=10", "sweeps=0"), (), ()]
    assert "feedback=false" in found[1].pipeline
    assert "rounds" not in found[1].pipeline


@pytest.mark.parametrize(
    ("axis", "kind", "said"),
    [
        ("geometri=clean,mcs", UnknownName, "did you mean geometry"),
        ("geometry=clean,msc", InvalidPipeline, "no method can be run with it"),
        ("geometry=clean", InvalidPipeline, "two values"),
        ("geometry", InvalidPipeline, "two values"),
    ],
)
def test_mistakes_are_named(
    axis: str, kind: type[Exception], said: str, registry: Registry
) -> None:
    with pytest.raises(kind) as error:
        made(registry, "gptq,rtn", axis)
    assert said in str(error.value)


def test_one_option_is_varied_once(registry: Registry) -> None:
    with pytest.raises(InvalidPipeline, match="twice"):
        made(registry, "gptq", "geometry=clean,mcs", "geometry=mcs,uniform")


def test_dashes_and_underlines_are_one_option() -> None:
    assert parse_axis("masked_weight=1, 2") == Axis("masked-weight", ("1", "2"))


def test_what_all_are_given_leaves_their_own_and_says_what_it_costs(registry: Registry) -> None:
    own = "mine=stages(calibrate-mcs{geometry=uniform},rtn-lower),pack"
    methods = parse_methods([f"gptq,release,data-free,{own}"], registry)
    found = variants(methods, [], registry, {"geometry": "clean"})
    assert [each.name for each in found] == ["gptq", "release", "data-free", "mine"]
    assert ["geometry=clean" in each.pipeline for each in found] == [True, True, False, False]
    assert [each.dropped for each in found] == [(), ("prefix=0.25",), (), ()]
    assert [each.kept for each in found] == [(), (), (), ("geometry",)]
    assert found[2].pipeline == "data-free"
    with pytest.raises(InvalidPipeline, match="--geometry cleen: no method"):
        variants(methods, [], registry, {"geometry": "cleen"})


def test_geometries_and_token_weights_are_varied_together(registry: Registry) -> None:
    axes = "geometry=clean,mcs,tmas", "token-weights=equal,certainty"
    found = made(registry, "gptq,default", *axes)
    assert len(found) == 12
    assert not any(each.error or each.dropped for each in found)
    assert "geometry=tmas token-weights=certainty" in found[5].pipeline
