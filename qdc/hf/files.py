"""The tensors of an artifact's files against those of a model, before any data is read."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from qdc.checkpoint.folder import SAFETENSORS_DTYPES
from qdc.errors import InvalidArtifact
from qdc.hf.packed import PackedModule
from qdc.ir.keys import file_key
from qdc.ir.types import ValueType
from qdc.runtime.load import compare_tensors
from qdc.runtime.weights import Wanted


def read_headers(files: Iterable[str], source: str | None) -> dict[str, ValueType]:
    """Dtype and shape of every tensor, by name.

    Args:
        files: paths, as transformers has found them by the index.
        source: what was to be loaded: a folder, or a name on a hub.

    Raises:
        InvalidArtifact: a file is damaged or lies outside the folder, or two hold one name.
    """
    found: dict[str, ValueType] = {}
    folder = Path(source).resolve() if source is not None and Path(source).is_dir() else None
    for path in files:
        # The folder of the file is followed, and not the file: caches are full of links.
        place = Path(path).parent.resolve() / Path(path).name
        if folder is not None and folder not in place.parents:
            raise InvalidArtifact("the index names files outside its folder", where=[path])
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name in found:
                        raise InvalidArtifact("a tensor is stored twice", where=[name])
                    view = file.get_slice(name)
                    dtype, shape = view.get_dtype(), tuple(view.get_shape())
                    found[name] = ValueType(dtype=SAFETENSORS_DTYPES.get(dtype, ""), shape=shape)
        except (SafetensorError, OSError) as error:
            raise InvalidArtifact(
                "the file is no safetensors file, or is cut short", where=[path]
            ) from error
        except ValidationError as error:
            raise InvalidArtifact("a tensor has an odd dtype or shape", where=[path]) from error
    return found


def compare(model: PreTrainedModel, found: dict[str, ValueType]) -> None:
    """Compare with a model on meta whose layers are packed. Raises ``InvalidArtifact``."""
    exact = {
        file_key(path, suffix): kind
        for path, module in model.named_modules()
        if isinstance(module, PackedModule)
        for suffix, kind in module.specification.items()
    }
    wanted: dict[str, Wanted] = {
        name: (exact[name].dtype if name in exact else None, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    }
    for target, source in model.all_tied_weights_keys.items():
        # Which of the two is stored depends on their order in the module.
        wanted.pop(target if source in found else source, None)
    compare_tensors(wanted, found, InvalidArtifact)
