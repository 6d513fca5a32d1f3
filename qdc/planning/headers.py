"""A model folder whose shards may be missing: configuration and index stand in for headers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qdc.checkpoint.compiled import refuse_compiled
from qdc.checkpoint.folder import Checkpoint, read_json
from qdc.checkpoint.layout import INDEX
from qdc.errors import InvalidCheckpoint
from qdc.frontend.coverage import check_tensors, mark_kept
from qdc.frontend.held_in_parts import held_whole
from qdc.frontend.opening import open_model
from qdc.frontend.own_names import match_own_names
from qdc.frontend.tracer import Program, trace
from qdc.ir.graph import LayerGraph
from qdc.ir.types import BYTES, SHORT, Parameter
from qdc.models.families import BUILT_IN, Families

DTYPE_FIELDS = ("dtype", "torch_dtype")
USUAL = "bf16"


class IndexOnly(Checkpoint):
    """Tensors by name from the index, with the shapes that the configuration gives."""

    def __init__(self, folder: Path, module: nn.Module, config: dict[str, Any]) -> None:
        """Read the index. Raises ``InvalidCheckpoint`` if it disagrees with the configuration.

        Args:
            folder: holds the index.
            module: the model that the configuration describes, on the meta device.
            config: the configuration.
        """
        self.folder, self.config = folder, config
        index = read_json(folder / INDEX)
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InvalidCheckpoint("the index has no weight_map", where=[str(folder / INDEX)])
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        shapes |= {key: whole.shape for key, whole in held_whole(module).items()}
        self.dtype = _dtype(config, index, sum(p.numel() for p in module.parameters()))
        self.headers = {
            name: Parameter(name=name, dtype=self.dtype, shape=shapes.get(name, ()))
            for name in map(str, names)
        }
        self.unused_fields, self.assumed_fields, self.left_out = "", "", {}
        self._files: dict[str, Path] = {}
        self.index_bytes = sum(parameter.nbytes for parameter in self.headers.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, headers aside."""
        return self.index_bytes


class Headers:
    """A model for several forecasts: opened and traced once, when the first one asks for it."""

    def __init__(self, folder: Path, families: Families = BUILT_IN) -> None:
        """Take the folder and the families that may claim it; nothing is read yet."""
        self.folder, self.families = folder, families
        self._opened: tuple[Checkpoint, Program, str] | None = None

    def open(self) -> tuple[Checkpoint, Program, str]:
        """What ``open_headers`` gives, and raises; the graph is the caller's own to annotate."""
        if self._opened is None:
            self._opened = open_headers(self.folder, self.families)
        checkpoint, program, assumed = self._opened
        graph = LayerGraph(program.graph.structure)
        graph.after = program.graph.after
        for node in program.graph:
            for note in program.graph.annotations(node.name).values():
                graph.annotate(node.name, note)
        return checkpoint, replace(program, graph=graph), assumed


def open_headers(folder: Path, families: Families = BUILT_IN) -> tuple[Checkpoint, Program, str]:
    """Open a model for planning: from the headers of its shards, or without any shard.

    Returns:
        The checkpoint, the traced program, and what was assumed, empty if nothing was.

    Raises:
        InvalidCheckpoint: tensors are missing, unmapped or of the wrong shape.
        UnsupportedModel: the family is not implemented.
    """
    if not (folder / INDEX).is_file() or any(folder.glob("*.safetensors")):
        return *open_model(folder, families=families), ""
    config = read_json(folder / "config.json")
    module, facts = families.build(config)
    checkpoint = IndexOnly(folder, module, config)
    refuse_compiled(checkpoint)
    checkpoint.unused_fields = families.unused(config)
    checkpoint.assumed_fields = families.assumed(config)
    match_own_names(module, checkpoint)
    program = trace(module, facts, checkpoint)
    check_tensors(program.graph, checkpoint, module)
    mark_kept(program.graph)
    dtype = checkpoint.dtype
    what = f"no shard is here: shapes follow from config.json, every tensor counts as {dtype}"
    return checkpoint, program, what


def _dtype(config: dict[str, Any], index: dict[str, Any], weights: int) -> str:
    """The dtype that the total of the index gives, else the configuration's, else bf16.

    Raises:
        InvalidCheckpoint: the total is that of no floating dtype.
    """
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    named = next((str(config[field]) for field in DTYPE_FIELDS if field in config), USUAL)
    named = SHORT.get(named.removeprefix("torch."), named)
    if not isinstance(total, int):
        return named if named in BYTES else USUAL
    fitting = [d for d in ("bf16", "f16", "f32", "f64") if BYTES[d] * weights == total]
    if not fitting:
        raise InvalidCheckpoint(
            f"the index counts {total:,} bytes, and config.json gives {weights:,} weights",
            where=[INDEX],
            help="the two files are of different models; fetch both again",
        )
    return named if named in fitting else fitting[0]
