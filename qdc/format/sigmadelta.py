"""The codec of SDQ-LLM: sigma-delta codes of rotated rows, more of them than columns.

``docs/format.md`` specifies it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedsigmadelta import RelaxedSigmaDelta
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.blocks import BLOCK, block_slices
from qdc.numerics.hadamard import RandomHadamard
from qdc.numerics.sigma_delta import Coded, Levels, SigmaDelta
from qdc.numerics.trits import TRITS, pack_trits, unpack_trits

HIGHEST_RATIO = 8
"""Most codes of a column."""


class SigmaDeltaCode(Codec):
    """W = ((scale * codes D) + mean) Q^T in each block: D samples down, Q is a rotation."""

    name: ClassVar[str] = "sigma-delta"
    by_rows: ClassVar[tuple[str, ...]] = ("codes", "scale", "mean")

    length: int = Field(ge=BLOCK, le=HIGHEST_RATIO * BLOCK)
    """Codes of a row of a full block of 128 columns."""
    levels: Levels = "ternary"

    @model_validator(mode="after")
    def _not_too_long(self) -> "SigmaDeltaCode":
        if self.width > 1 << 27:
            raise ValueError(f"a row of {self.width} codes is longer than any layer's")
        return self

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The blocks that are resampled."""
        return block_slices(self.columns)

    @property
    def code_slices(self) -> tuple[slice, ...]:
        """Where the codes of each block stand in a row: as many for a column as in full blocks."""
        starts = [0]
        for part in self.column_blocks:
            starts.append(starts[-1] + (part.stop - part.start) * self.length // BLOCK)
        return tuple(slice(a, b) for a, b in pairwise(starts))

    @property
    def width(self) -> int:
        """Codes of a row."""
        full, ragged = divmod(self.columns, BLOCK)
        return full * self.length + ragged * self.length // BLOCK

    @property
    def payload_bits(self) -> int:
        """A bit for each code, or a fifth of a byte."""
        codes = self.rows * self.width
        return codes if self.levels == "binary" else -(-8 * codes // TRITS)

    @property
    def working_bytes(self) -> int:
        """A byte for each code, and fp16 scales and means."""
        return self.rows * (self.width + 4 * len(self.column_blocks)) + 4

    def text(self) -> str:
        """``ternary   160 codes for 128 columns   2 bits``."""
        bits = self.payload_bits / (self.rows * self.columns)
        return f"{self.levels}   {self.length} codes for {BLOCK} columns   {bits:.4g} bits"

    def specification(self) -> dict[str, ValueType]:
        """Codes, each row on whole bytes, scales, means, and the seed of the rotation."""
        per_byte = 8 if self.levels == "binary" else TRITS
        blocks = len(self.column_blocks)
        return {
            "codes": ValueType(dtype="u8", shape=(self.rows, -(-self.width // per_byte))),
            "scale": ValueType(dtype="f16", shape=(self.rows, blocks)),
            "mean": ValueType(dtype="f16", shape=(self.rows, blocks)),
            "seed": ValueType(dtype="i32", shape=(1,)),
        }

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification; the seed must be one."""
        super().check(stored, layer)
        if bool((stored["seed"] < 0).any()):
            raise InvalidArtifact("the seed is below 0", where=[layer])

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes, int8 in the working form, to bytes."""
        pack = pack_signs if self.levels == "binary" else pack_trits
        return {**working, "codes": pack(working["codes"]).contiguous()}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bytes to codes."""
        unpack = unpack_signs if self.levels == "binary" else unpack_trits
        return {**stored, "codes": unpack(stored["codes"], self.width)}

    def dense(self, working: Tensors) -> Tensor:
        """Each block by ``SigmaDelta.dense``, side by side."""
        codes, scale, mean = working["codes"], working["scale"], working["mean"]
        blocks = self.blocks(int(working["seed"]), codes.device)
        parts = [
            block.dense(Coded(codes[:, part], scale[:, at].float(), mean[:, at].float()))
            for at, (block, part) in enumerate(zip(blocks, self.code_slices, strict=True))
        ]
        return torch.cat(parts, dim=1)

    def blocks(self, seed: int, device: torch.device) -> list[SigmaDelta]:
        """The code of each block; all of one width share their rotation."""
        made: dict[tuple[int, int], SigmaDelta] = {}
        found = []
        for columns, codes in zip(self.column_blocks, self.code_slices, strict=True):
            sizes = columns.stop - columns.start, codes.stop - codes.start
            if sizes not in made:
                rotation = RandomHadamard.of(sizes[0], seed, device)
                made[sizes] = SigmaDelta(rotation, sizes[1], self.levels)
            found.append(made[sizes])
        return found

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedSigmaDelta:
        """Latent numbers, scales and means that start at the working tensors."""
        blocks = self.blocks(int(working["seed"]), weight.device)
        return RelaxedSigmaDelta(working, blocks)

    def rescaling(self) -> NamedScales:
        """Scales and means."""
        return NamedScales(self.dense, ("scale", "mean"), ("scale",))

    @staticmethod
    def working(blocks: Sequence[Coded], seed: int) -> dict[str, Tensor]:
        """Working tensors of coded blocks that stand side by side."""
        return {
            "codes": torch.cat([block.codes for block in blocks], dim=1),
            "scale": torch.stack([block.scale for block in blocks], dim=1).half(),
            "mean": torch.stack([block.mean for block in blocks], dim=1).half(),
            "seed": torch.tensor([seed], dtype=torch.int32),
        }
