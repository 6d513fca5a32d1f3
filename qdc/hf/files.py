"""The tensors of an artifact's files against those of a model, before any data is read."""

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedModel

from qdc.artifact.writer import CONFIG
from qdc.checkpoint.folder import SAFETENSORS_DTYPES, TOKENIZER_FILES
from qdc.checkpoint.layout import INDEX, not_readable, open_tensors
from qdc.errors import InvalidArtifact, InvalidCheckpoint
from qdc.hf.packed import PackedModule
from qdc.ir.keys import file_key
from qdc.ir.types import ValueType
from qdc.modelfiles import open_inside
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
            with open_tensors(place) as file:
                for name in file.keys():  # noqa: SIM118
                    if name in found:
                        raise InvalidArtifact("a tensor is stored twice", where=[name])
                    view = file.get_slice(name)
                    dtype, shape = view.get_dtype(), tuple(view.get_shape())
                    found[name] = ValueType(dtype=SAFETENSORS_DTYPES.get(dtype, ""), shape=shape)
        except InvalidCheckpoint as error:
            raise InvalidArtifact(error.what, where=error.where, help=error.help) from error
        except ValidationError as error:
            raise InvalidArtifact("a tensor has an odd dtype or shape", where=[path]) from error
    return found


def refuse_links_out(folder: Path) -> None:
    """Refuse a folder of which other files are links that lead out of it.

    transformers follows them, and ``save_pretrained`` writes again what they said.

    Raises:
        InvalidArtifact: names the file.
    """
    for path in (folder / name for name in (CONFIG, INDEX, *TOKENIZER_FILES)):
        if os.path.lexists(path):
            try:
                os.close(open_inside(path))
            except OSError as error:
                refused = not_readable(path, error)
                raise InvalidArtifact(refused.what, where=[str(path)], help=refused.help) from error


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
