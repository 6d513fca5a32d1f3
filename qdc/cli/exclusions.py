"""``qdc eval`` measures on text or on tasks; no option of the other kind is ignored."""

from collections.abc import Set

from qdc.errors import QdcError

OF_TEXT = ("ratios", "length", "windows", "seeds", "infills", "text_field", "report")
OF_TASKS = ("include", "limit", "shots", "scorer", "mc_num", "cfg", "generate", "chat", "seed")


def refuse_mixture(given: Set[str], *, text: bool, tasks: bool, compared: bool) -> None:
    """Raise ``QdcError`` unless one of ``--text`` and ``--tasks`` is given, with its options.

    ``given`` are the options of the command line, ``compared`` says whether there are two models.
    """
    if {"json", "markdown"} <= given:
        raise QdcError("--json and --markdown exclude each other", help="leave one out")
    if text == tasks:
        count = "both" if text else "neither"
        raise QdcError(
            f"{count} of '--text' and '--tasks' given, need one",
            help="--text held.jsonl measures on held-out text, --tasks arc_easy on tasks",
        )
    mine, other = ("--text", OF_TASKS) if text else ("--tasks", OF_TEXT)
    wrong = [f"--{name.replace('_', '-')}" for name in other if name in given]
    if "infills" in given and not compared:
        wrong, mine = ["--infills"], "one model"
    if wrong:
        raise QdcError(f"{', '.join(wrong)} changes nothing with {mine}", help="leave it out")
