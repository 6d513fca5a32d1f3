"""``qdc eval`` measures on text or on tasks; no option of the other kind is ignored."""

from collections.abc import Set

from qdc.errors import QdcError

OF_TEXT = ("ratios", "length", "windows", "seeds", "infills", "text_field", "report")
OF_TASKS = ("include", "limit", "shots", "scorer", "mc_num", "cfg", "generate", "chat", "seed")


def refuse_mixture(given: Set[str], *, text: bool, tasks: bool) -> None:
    """Raise ``QdcError`` unless one of ``--text`` and ``--tasks`` is given, with its options."""
    if text == tasks:
        count = "both" if text else "neither"
        raise QdcError(
            f"{count} of '--text' and '--tasks' given, need one",
            help="--text held.jsonl measures on held-out text, --tasks arc_easy on tasks",
        )
    mine, other = ("--text", OF_TASKS) if text else ("--tasks", OF_TEXT)
    wrong = [f"--{name.replace('_', '-')}" for name in other if name in given]
    if wrong:
        raise QdcError(f"{', '.join(wrong)} changes nothing with {mine}", help="leave it out")
