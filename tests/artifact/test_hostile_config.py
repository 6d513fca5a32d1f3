"""Whatever an artifact's configuration says, loading works or is refused by a ``QdcError``."""

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import qdc
from qdc.artifact.digests import DIGESTS
from qdc.errors import QdcError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["uniform", "multi-binary", 2, 8, 32, 128])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)


def paths(data: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place of a JSON value, few of the many layers."""
    keys: list[Any] = []
    if isinstance(data, dict):
        keys = list(data)[:12]
    elif isinstance(data, list):
        keys = list(range(len(data)))[:3]
    inner: Any = data
    return [path, *(p for key in keys for p in paths(inner[key], (*path, key)))]


def put(data: Any, path: tuple[str | int, ...], value: object, *, drop: bool) -> Any:
    if not path:
        return value
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    if drop:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return data


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_configuration_gets_past_qdc_errors(artifact: Path, data: st.DataObject) -> None:
    config = json.loads((artifact / "config.json").read_text())
    part = config["quantization_config"]
    path = data.draw(st.sampled_from(paths(part)))
    value, drop = data.draw(values), data.draw(st.booleans())
    config["quantization_config"] = put(part, path, value, drop=drop)
    check(artifact, json.dumps(config).encode())


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_model_configuration_gets_past_qdc_errors(artifact: Path, data: st.DataObject) -> None:
    config = json.loads((artifact / "config.json").read_text())
    key = data.draw(st.sampled_from([k for k in config if k != "quantization_config"]))
    check(artifact, json.dumps({**config, key: data.draw(values)}).encode())


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.integers(0, 1 << 20), byte=st.integers(0, 255))
@example(place=0, byte=0)
def test_no_changed_byte_gets_past_qdc_errors(artifact: Path, place: int, byte: int) -> None:
    text = bytearray((artifact / "config.json").read_bytes())
    text[place % len(text)] = byte
    check(artifact, bytes(text))


def check(artifact: Path, config: bytes) -> None:
    """With this configuration, beside the other files, loading works or is refused."""
    folder = artifact.with_name("mutated")
    if not folder.exists():
        folder.mkdir()
        for file in artifact.iterdir():
            if file.name not in ("config.json", DIGESTS):
                (folder / file.name).hardlink_to(file)
    (folder / "config.json").write_bytes(config)
    try:
        module = qdc.load(folder)
    except QdcError as error:
        str(error)
    else:
        assert module is not None
