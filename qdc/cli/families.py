"""``qdc families``: the models that are implemented, and what was proved of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdc.cli.terminal import console, print_json, print_lines, print_table, table
from qdc.models.family import Family
from qdc.pipeline.registry import standard_registry

OTHERS = (
    "other architectures: through torch.export of the class in transformers, where it exports "
    "and the checkpoint has a mask token (qdc compile --frontend export)"
)
UNPROVED = "not proved: no published checkpoint was loaded, only random ones of the same layout"


def families_command(plugins: Sequence[Path], as_json: bool) -> None:
    """List families, where they are from, their proofs, and what is refused."""
    registry = standard_registry(plugins)
    families = registry.families
    if as_json:
        refused = [refusal._asdict() for refusal in families.refused]
        listed = [_as_data(family, registry.origin(family)) for family in families.members]
        print_json({"families": listed, "refused": refused})
        return
    to = console()
    rows = table("families", "family", "architectures", "mask", "shift", "front end", right=(2, 3))
    for column in rows.columns[:2]:
        column.no_wrap = True  # names are looked for as they are
    for family in families.members:
        mask = "in config" if family.fills_masks else "none"
        if family.mask_token_id is not None:
            mask = str(family.mask_token_id)
        rows.add_row(
            family.name, "\n".join(family.architectures), mask, str(family.logits_shift),
            family.front_end,
        )  # fmt: skip
    print_table(to, rows)
    for family in families.members:
        to.print(f"\n{family.name}", style="bold", markup=False)
        origin = registry.origin(family)
        if origin:
            print_lines(to, f"  defined    by {origin}")
        if family.published:
            print_lines(to, f"  published  {', '.join(family.published)}")
        print_lines(to, f"  sees       {family.attention}", f"  around     {_around(family)}")
        if family.decoding:
            print_lines(to, f"  decoding   {_decoding(family)}")
        if not family.proved:
            print_lines(to, "  proved     nothing")
        for proof in family.proved:
            print_lines(to, f"  proved     {proof.what}", f"             {proof.test}")
    print_lines(to, "", OTHERS, UNPROVED)
    to.print("\nrefused", style="bold")
    for refusal in families.refused:
        names = ", ".join(refusal.architectures)
        print_lines(to, f"  {refusal.name} ({names})", f"    {refusal.reason}")


def _around(family: Family) -> str:
    """What stands around a text by default."""
    if not family.published_without:
        return "special tokens as the tokenizer's post-processor adds them"
    return f"no special tokens, as in {family.published_without}; see --document-tokens"


def _decoding(family: Family) -> str:
    """How answers are written where nothing else is asked for."""
    rest = {name: value for name, value in family.decoding.items() if name != "strategy"}
    named = ", ".join(f"{name} {value}" for name, value in rest.items())
    return f"{family.decoding['strategy']}" + (f", {named}" if named else "") + ", by default"


def _as_data(family: Family, origin: str) -> dict[str, Any]:
    return {
        "name": family.name,
        "origin": origin or None,
        "architectures": family.architectures,
        "published": family.published,
        "attention": family.attention,
        "mask_token_id": family.mask_token_id,
        "logits_shift": family.logits_shift,
        "front_end": family.front_end,
        "published_without": family.published_without or None,
        "end_token_id": family.end_token_id,
        "decoding": dict(family.decoding) or None,
        "proved": [proof._asdict() for proof in family.proved],
    }
