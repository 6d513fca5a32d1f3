"""One GGUF file, which llama.cpp loads: blocks of ggml as they are, all else decoded.

Regions are written as the portable folder has them, so that an interrupted compile can go on; at
the end the file is made of them, and takes its place alone: OUT is the file. Layers that
``gguf-lower`` and ``gguf-vocab`` have quantized are copied; those of other codecs are decoded to
``dense``, which takes up to eight times their bytes.
"""

import logging
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from qdc.artifact.commit import SingleFile
from qdc.artifact.config import parse_quantization, plain_config
from qdc.artifact.emission import Emission
from qdc.checkpoint.folder import Checkpoint
from qdc.format.codec import Lowered
from qdc.gguf.names import naming
from qdc.gguf.package import gguf_package
from qdc.gguf.vocabulary import read_vocabulary
from qdc.gguf.writing import Decoded, file_bytes, refuse_rotated_blocks, write_gguf
from qdc.ir.activations import RotatedHeads, Rotation, of_activations
from qdc.ir.annotations import Packed
from qdc.ir.graph import Region
from qdc.models.families import BUILT_IN
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.foreseen import FileSize, Foreseen
from qdc.pipeline.passbase import Kinds
from qdc.pipeline.registry import Registry
from qdc.runtime.weights import StoredWeights

from .reference import Reference

log = logging.getLogger(__name__)


class Gguf(Backend):
    """Write one GGUF file for llama.cpp."""

    name: ClassVar[str] = "gguf"
    activations: ClassVar[Kinds] = (Rotation, RotatedHeads)
    single_file: ClassVar[SingleFile] = SingleFile("model.gguf", b"GGUF")

    dense: Decoded = Field(default="F16", description="type of matrices that are no blocks of ggml")
    pre_tokenizer: str | None = Field(
        default=None, description="llama.cpp's name of how a text is split; none: the tokenizer's"
    )

    def check_model(self, checkpoint: Checkpoint, registry: Registry) -> None:
        """Refuse families, tokenizers and options that llama.cpp does not know."""
        gguf_package()
        model = naming(checkpoint.config, registry.families)
        read_vocabulary(checkpoint.folder, model, self.pre_tokenizer)

    def beside(self, foreseen: Foreseen) -> list[FileSize] | None:
        """The one file: sizes of tensors follow from shapes, the head is written and measured.

        Raises ``UnsupportedModel`` for what llama.cpp does not know.
        """
        gguf_package()
        model = naming(foreseen.checkpoint.config, foreseen.families)
        if not any(foreseen.checkpoint.tokenizer_files()):
            foreseen.unread.append("the GGUF file, whose head holds a tokenizer that is not here")
            return None
        vocabulary = read_vocabulary(foreseen.folder, model, self.pre_tokenizer)
        nbytes, tensors = file_bytes(
            model, foreseen.stored, foreseen.codecs, vocabulary,
            name=Path(self.single_file.name).stem, dense=self.dense,
        )  # fmt: skip
        return [FileSize(self.single_file.name, nbytes, tensors)]

    def emit_region(self, emission: Emission, region: Region) -> None:
        """Write the region as the portable folder has it; rotated blocks of ggml are refused."""
        nodes = [emission.graph[name] for name in region.nodes]
        lowered = {node.path: emission.graph.get(node.name, Lowered) for node in nodes}
        does = {node.path: of_activations(emission.graph, node.name) for node in nodes}
        refuse_rotated_blocks(
            {path: note.codec for path, note in lowered.items() if note is not None},
            [path for path, each in does.items() if each is not None],
        )
        Reference().emit_region(emission, region)

    def finish(self, emission: Emission) -> None:
        """Finish the folder, and make the file of it."""
        Reference().finish(emission)
        graph, writer = emission.graph, emission.writer
        codecs = {
            node.path: graph.require(node.name, Lowered).codec
            for node in graph
            if graph.get(node.name, Packed) is not None and graph.owner(node.name) == node.name
        }
        source = Checkpoint(writer.folder)
        model = naming(plain_config(source.config), BUILT_IN)
        vocabulary = read_vocabulary(writer.folder, model, self.pre_tokenizer)
        path = writer.folder / self.single_file.name
        activations = parse_quantization(source.config).activations
        weights = StoredWeights(codecs, source=source, activations=activations)
        name = writer.out.stem
        found = write_gguf(path, model, source, weights, vocabulary, name=name, dense=self.dense)
        writer.tensor_bytes, writer.decoded = found.nbytes, len(found.decoded)
        if found.decoded:
            log.warning(
                "%d layers are stored as no block of ggml and stand decoded in the file, as %s",
                len(found.decoded),
                self.dense,
            )
        if weights.rotated:
            log.warning(
                "rotations of inputs are multiplied out of %d of them: llama.cpp has none",
                len(weights.rotated),
            )
