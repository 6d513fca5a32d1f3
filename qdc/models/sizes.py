"""From the fields of a ``config.json`` to the sizes of a decoder, by a table of field names.

Every field that decides the network is read or held to the values that are implemented; all others
are ignored. A problem is told under the published name of its field.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qdc.jsontext import model_of
from qdc.models.configuration import BEST_OF_GROUP, MOST_EXPERTS, Count, Depth, Width
from qdc.models.variants import read_rope, refused_variants


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which field of ``config.json`` gives which size; empty where a family has no such field."""

    width: str = "hidden_size"
    """Columns of the residual stream."""
    blocks: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    key_heads: str = "num_key_value_heads"
    """Heads of keys and values; as many as of queries if the configuration does not say."""
    head_width: str = "head_dim"
    """Columns of a head; the width shared evenly if the configuration does not say."""
    hidden: str = "intermediate_size"
    """Columns inside a dense feed-forward."""
    vocabulary: str = "vocab_size"
    embeddings: str = ""
    """Rows of embedding and head; those of the vocabulary if the configuration does not say."""
    max_length: str = "max_position_embeddings"
    theta: str = "rope_theta"
    rotated: str = ""
    """Share of the columns of a head that is rotated, the first ones; all if it does not say."""
    eps: str = "rms_norm_eps"
    mask_token: str = "mask_token_id"
    tied: str = "tie_word_embeddings"
    """Whether embedding and head are one tensor."""
    head_norms: str = ""
    """Whether queries and keys are normed head by head before they are rotated."""
    block: str = ""
    """Tokens of an attention block, for families in which a position sees its own block and those
    before it."""

    experts: str = ""
    """Experts of a block; a family with such a field is a mixture."""
    experts_per_token: str = "num_experts_per_tok"
    expert_hidden: str = "moe_intermediate_size"
    """Columns inside an expert."""
    normalized: str = "norm_topk_prob"
    """Whether the weights of a token's experts are made to add up to 1."""
    sparse_blocks: str = ""
    """For each block 1 if it has experts, 0 if its feed-forward is dense."""
    sparse_step: str = ""
    """Only blocks whose number, counted from 1, is a multiple of it have experts."""
    dense_blocks: str = ""
    """Numbers of blocks without experts."""
    first_sparse: str = ""
    """Number of the first block with experts; those before it are dense."""
    shared_experts: str = ""
    """How many experts every token goes to; they are one, so many times as wide."""
    scores: str = ""
    """What makes scores of experts of the router's numbers: ``softmax`` or ``sigmoid``. With
    ``sigmoid`` a bias takes part in the choice of experts, and none in their weights."""
    groups: str = ""
    """Groups of equally many experts, of which each token chooses some first; by ``sigmoid``."""
    groups_per_token: str = ""
    routed_scale: str = ""
    """What the weights of a token's experts are multiplied with; by ``sigmoid``."""

    def present(self) -> dict[str, str]:
        """The table of sizes that the family has fields for: size, then field."""
        mixture = ("experts_per_token", "expert_hidden", "normalized")
        return {
            size: field
            for size, field in asdict(self).items()
            if field and (self.experts or size not in mixture)
        }


class Sizes(BaseModel):
    """What a decoder is built with; the names are those of ``Fields``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: Width
    blocks: Depth
    heads: Width
    key_heads: Width | None = None
    head_width: Width | None = None
    hidden: Width | None = None
    vocabulary: Width
    embeddings: Width | None = None
    max_length: Count = 32768
    theta: float = Field(default=10000.0, gt=0)
    rotated: float = Field(default=1.0, gt=0, le=1)
    eps: float = Field(default=1e-6, gt=0)
    mask_token: int = Field(ge=0)
    tied: bool = False
    head_norms: bool = False
    block: Count | None = None

    experts: Annotated[int, Field(gt=0, le=4096)] | None = None
    experts_per_token: Count = 1
    expert_hidden: Width | None = None
    normalized: bool | None = False
    sparse_blocks: tuple[Literal[0, 1], ...] | None = None
    sparse_step: Count = 1
    dense_blocks: tuple[int, ...] | None = None
    first_sparse: int = Field(default=0, ge=0)
    shared_experts: Annotated[int, Field(ge=0, le=4096)] | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"
    groups: Count = 1
    groups_per_token: Count = 1
    routed_scale: float = Field(default=1.0, gt=0)

    @property
    def rows(self) -> int:
        """Rows of embedding and head."""
        return self.embeddings or self.vocabulary

    @property
    def query_columns(self) -> int:
        """Columns of all heads; they need not be as many as those of the residual stream."""
        return self.heads * self.head_columns

    @property
    def key_columns(self) -> int:
        """Columns of all heads of keys, and of values."""
        return (self.key_heads or self.heads) * self.head_columns

    @property
    def head_columns(self) -> int:
        """Columns of a head."""
        return self.head_width or self.width // self.heads

    @property
    def rotated_columns(self) -> int:
        """Columns of a head that are rotated, the first ones."""
        return int(self.head_columns * self.rotated)

    @property
    def shared_hidden(self) -> int:
        """Columns inside the expert that every token goes to; 0 without one."""
        return (self.shared_experts or 0) * (self.expert_hidden or 0)

    def is_sparse(self, index: int) -> bool:
        """Whether the block of this number has experts."""
        if self.experts is None or index in (self.dense_blocks or ()) or index < self.first_sparse:
            return False
        if self.sparse_blocks is not None and not self.sparse_blocks[index]:
            return False
        return (index + 1) % self.sparse_step == 0


FLAGS = ("tied", "head_norms", "normalized")
"""Sizes that are truth values; null is false, as in code that asks ``if config.field``."""
DECISIVE = ("block", "experts", "expert_hidden")
"""Sizes without which other families do; one that has a field for them must be told."""


def read_sizes(
    config: Mapping[str, Any],
    fields: Fields,
    defaults: Mapping[str, object],
    variants: Mapping[str, tuple[object, ...]],
) -> tuple[Sizes | None, list[str]]:
    """Read the sizes of a configuration.

    Args:
        config: ``config.json``.
        fields: where the sizes stand.
        defaults: sizes of a configuration that does not give them.
        variants: fields that choose a variant, each with the values that are implemented; one of
            those that all families hold is held to these values instead.

    Returns:
        The sizes, None where they cannot be read, and what is wrong, ``field: problem`` each.
    """
    table = fields.present()
    given = {size: config[field] for size, field in table.items() if field in config}
    given |= {size: False for size in FLAGS if size in given and given[size] is None}
    problems = list(refused_variants(config, variants, read=tuple(table.values())))
    rope = read_rope(config, table.get("theta", "rope_theta"), table.get("rotated", ""), variants)
    problems += rope.problems
    given |= rope.found
    known = {**defaults, **given}
    untold = [size for size in DECISIVE if size in table and known.get(size) is None]
    problems += [f"{table[size]}: a value is needed" for size in untold]
    try:
        sizes = model_of(Sizes, {k: v for k, v in known.items() if k not in untold})
    except ValidationError as error:
        return None, problems + _told(error, table)
    if not untold:
        problems += _contradictions(sizes, {size: table.get(size, size) for size in asdict(fields)})
    return sizes, problems


def _told(error: ValidationError, table: Mapping[str, str]) -> list[str]:
    """The problems that pydantic has found, under published names, with what was found."""
    found = []
    for each in error.errors():
        first, *rest = map(str, each["loc"] or ("config.json",))
        place = ".".join((table.get(first, first), *rest))
        given = "" if each["type"] == "missing" else f" (given {each['input']!r:.80})"
        found.append(f"{place}: {each['msg']}{given}")
    return found


def _contradictions(sizes: Sizes, names: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with sizes that are each possible by themselves."""
    key_heads = sizes.key_heads or sizes.heads
    if sizes.head_width is None and sizes.width % sizes.heads:
        yield f"{names['width']} {sizes.width} does not split into {sizes.heads} heads"
    elif sizes.rotated_columns % 2 or not sizes.rotated_columns:
        part = "" if sizes.rotated == 1 else f" by {sizes.rotated_columns} of their columns"
        odd = "odd width " if sizes.head_columns % 2 else "width "
        yield f"heads of {odd}{sizes.head_columns} cannot be rotated{part}"
    if sizes.heads % key_heads:
        yield (f"{names['heads']} {sizes.heads} is no multiple of {names['key_heads']} {key_heads}")
    if sizes.mask_token >= sizes.rows:
        yield (f"{names['mask_token']} {sizes.mask_token} is outside the {sizes.rows} embeddings")
    kinds = sizes.sparse_blocks
    if kinds is not None and len(kinds) != sizes.blocks:
        yield f"{names['sparse_blocks']} describes {len(kinds)} of {sizes.blocks} blocks"
        return
    sparse = [sizes.is_sparse(index) for index in range(sizes.blocks)]
    if not all(sparse) and sizes.hidden is None:
        some = "some blocks" if any(sparse) else "the feed-forwards"
        yield f"{names['hidden']}: {some} are dense, and {names['hidden']} is missing"
    if sizes.experts is not None:
        yield from _wrong_experts(sizes, sizes.experts, names, any(sparse))


def _wrong_experts(
    sizes: Sizes, experts: int, names: Mapping[str, str], some_sparse: bool
) -> Iterator[str]:
    if sizes.experts_per_token > experts:
        yield (
            f"{names['experts_per_token']} {sizes.experts_per_token} is above "
            f"{names['experts']} {experts}"
        )
    if experts % sizes.groups:
        yield (f"{names['experts']} {experts} do not split into {sizes.groups} groups")
    elif sizes.groups_per_token > sizes.groups:
        yield (
            f"{names['groups_per_token']} {sizes.groups_per_token} is above "
            f"{names['groups']} {sizes.groups}"
        )
    elif sizes.experts_per_token > experts // sizes.groups * sizes.groups_per_token:
        yield (
            f"{names['experts_per_token']} {sizes.experts_per_token} is above the "
            f"{experts // sizes.groups * sizes.groups_per_token} experts of "
            f"{names['groups_per_token']} {sizes.groups_per_token}"
        )
    elif sizes.groups > 1 and experts // sizes.groups < BEST_OF_GROUP:
        yield (
            f"{names['groups']} {sizes.groups}: groups are chosen by their {BEST_OF_GROUP} best "
            f"experts, and {names['experts']} {experts} leaves fewer in each"
        )
    if experts * sizes.blocks > MOST_EXPERTS:
        yield (
            f"{names['experts']} {experts} in {sizes.blocks} blocks are more than "
            f"{MOST_EXPERTS} experts"
        )
    if some_sparse and sizes.expert_hidden is None:
        yield (
            f"{names['expert_hidden']}: some blocks have experts, and "
            f"{names['expert_hidden']} is missing"
        )
