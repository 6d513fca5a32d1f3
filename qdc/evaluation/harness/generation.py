"""Answers of generation tasks, through the decoding loop."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from qdc.errors import QdcError
from qdc.evaluation.harness.subject import Subject
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.not_offered import NOT_OFFERED, asks_nothing
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.strategies import check_canvas, make_strategy, needs_verifier
from qdc.units import Progress

DEFAULT_LENGTH = 256
"""Tokens of an answer where neither the user nor the task says; the harness's own."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks give that number; of several the first one counts, as in the harness."""

ALL_TOKENS = (0, -1)
"""Values of ``top_k`` that cut nothing: transformers takes the one, vLLM the other."""


READ = ("until", *LENGTHS, "do_sample", "temperature", "top_p", "top_k")
"""Settings of a task that are read."""

HARMLESS = ("use_cache",)
"""Settings that change no answer."""


class Question(NamedTuple):
    """A prompt's tokens, the options of its answer, and the texts that end it."""

    prompt: tuple[int, ...]
    options: DecodeOptions
    stops: tuple[str, ...]
    truncated: bool
    """Whether the prompt was cut."""
    repeat: int
    """How often the same was asked before; where tokens are drawn, each time others are."""


def question(
    subject: Subject,
    context: str,
    settings: Mapping[str, Any],
    given: DecodeOptions | None = None,
    repeat: int = 0,
) -> Question:
    """What a task asks, under its generation settings.

    What the user has set of ``given`` wins. Of the task's settings ``until``, the length
    (``LENGTHS``), and how to draw count; others are refused, unless they ask for nothing. The
    prompt is cut on the left to what the model takes. Raises QdcError.
    """
    _refuse_others(settings)
    fields = {"length": _length(settings), **_drawing(settings)}
    wanted = {} if given is None else given.model_dump(exclude_unset=True)
    options = DecodeOptions.parse(**{**fields, **wanted}).settled(subject.decoding.usual)
    strategy = make_strategy(options, subject.strategies)
    check_canvas(strategy, subject.decoding)
    if needs_verifier(type(strategy)):
        raise QdcError(
            "tasks have no verifier, which the strategy apd needs",
            help="choose another strategy in --generate",
        )
    room = subject.facts.max_length - subject.decoding.computed(options.length)
    if room < 1:
        raise QdcError(
            f"answers of {options.length} tokens leave no room for a prompt, the model takes "
            f"{subject.facts.max_length} in all",
            help="--generate length=N",
        )
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(str(stop) for stop in until)
    prompt = [*subject.before, *subject.encode(context)]
    kept = tuple(prompt[-room:])
    ends = tuple(stop for stop in stops if stop)
    return Question(kept, options, ends, len(kept) < len(prompt), repeat)


def _refuse_others(settings: Mapping[str, Any]) -> None:
    """Refuse what a task asks for and would not get. Raises QdcError naming all settings."""
    wrong = []
    for name, value in settings.items():
        if name in READ or name in HARMLESS or value is None:
            continue
        if name not in NOT_OFFERED:
            mine = name in DecodeOptions.model_fields
            why = f"give it in --generate {name}=..." if mine else "unknown, nothing acts on it"
        elif asks_nothing(name, _plain(value)):
            continue
        else:
            why = NOT_OFFERED[name].why
        wrong.append(f"{name}: {str(value)[:64]!r}: {why}")
    if wrong:
        raise QdcError(
            "a task asks for generation that is not offered",
            where=wrong,
            help="take it out of generation_kwargs, in a copy of the task under --include",
        )


def _plain(value: Any) -> Any:
    """A setting that stands in a yaml as text, as the number that it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _length(settings: Mapping[str, Any]) -> int:
    """Tokens of an answer. Raises QdcError for what is no number."""
    name = next((each for each in LENGTHS if settings.get(each) is not None), None)
    return DEFAULT_LENGTH if name is None else int(_number(settings, name))


def _drawing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of how tokens are drawn; none where the task is greedy.

    As in the harness a temperature alone asks for drawing, and ``do_sample: false`` forbids it.
    """
    temperature = 0.0
    if settings.get("temperature") is not None:
        temperature = _number(settings, "temperature")
    if settings.get("do_sample") is False or temperature == 0:
        return {}
    fields: dict[str, Any] = {"temperature": temperature}
    if settings.get("top_p") is not None:
        fields["top_p"] = _number(settings, "top_p")
    if settings.get("top_k") is not None:
        most = int(_number(settings, "top_k"))
        fields["top_k"] = None if most in ALL_TOKENS else most
    return fields


def _number(settings: Mapping[str, Any], name: str) -> float:
    """A number of the settings, which may stand there as text. Raises QdcError."""
    try:
        found = float(settings[name])
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise QdcError(
            f"a task has {name}: {str(settings[name])[:64]!r}, need a number",
            help="correct generation_kwargs in the task, or give --generate",
        )
    return found


def answer(
    subject: Subject,
    questions: Sequence[Question],
    batch: int,
    progress: Progress | None = None,
) -> list[str]:
    """Decode the answers, those with the same options together, and cut them at their stops."""
    found = [""] * len(questions)
    order = sorted(
        range(len(questions)),
        key=lambda place: (repr(questions[place].options), len(questions[place].prompt)),
    )
    done = 0
    for _, group in groupby(order, lambda place: repr(questions[place].options)):
        places = list(group)
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            decoded = decode(
                subject.module,
                [questions[place].prompt for place in part],
                questions[part[0]].options,
                subject.decoding,
                seeds=[questions[place].options.seed + questions[place].repeat for place in part],
                strategies=subject.strategies,
            )
            for place, tokens in zip(part, decoded.answers, strict=True):
                found[place] = cut(subject.decode(tokens), questions[place].stops)
            done += len(part)
            if progress is not None:
                progress(done, len(questions))
    return found


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops; a diffusion model fills the whole length."""
    ends = [text.find(stop) for stop in stops]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
