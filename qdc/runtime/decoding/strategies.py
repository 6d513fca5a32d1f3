"""The strategies that come with qdc, and the way from the options of a run to its strategy."""

from collections.abc import Mapping

from qdc.errors import QdcError
from qdc.pipeline.builder import configured
from qdc.pipeline.registry import find_named
from qdc.pipeline.strategybase import Stepwise, Strategy
from qdc.pipeline.syntax import parse_item
from qdc.runtime.decoding.apd import Apd
from qdc.runtime.decoding.denoising import Renoise
from qdc.runtime.decoding.dream import Entropy, MaskGitPlus, Origin, TopKMargin
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.llada import (
    Dynamic,
    LowConfidence,
    ParallelFactor,
    Random,
    Sequential,
    Static,
    Threshold,
)
from qdc.runtime.decoding.options import DecodeOptions

STRATEGIES: tuple[type[Strategy], ...] = (
    LowConfidence,
    Random,
    Origin,
    MaskGitPlus,
    TopKMargin,
    Entropy,
    Threshold,
    ParallelFactor,
    Sequential,
    Static,
    Dynamic,
    Renoise,
    Apd,
)

Strategies = Mapping[str, type[Strategy]]
BUILT_IN: Strategies = {kind.name: kind for kind in STRATEGIES}
"""What is known where no registry is at hand."""

OF_THE_LOOP = (
    "length",
    "strategy",
    "cache",
    "cache_bits",
    "cfg",
    "seed",
    "forbid_eos",
    "stop_early",
)
SHARED = tuple(name for name in DecodeOptions.model_fields if name not in OF_THE_LOOP)
"""Options that act through a strategy alone, so each strategy says whether it reads them."""


def shared_options(kind: type[Strategy]) -> tuple[str, ...]:
    """Those of ``SHARED`` that a strategy reads: by a field of that name, or as it declares."""
    return tuple(name for name in SHARED if name in kind.model_fields or name in kind.reads)


def needs_verifier(kind: type[Strategy]) -> bool:
    """Whether an autoregressive verifier reads what it drafts."""
    return issubclass(kind, Apd)


def needs_canvas(kind: type[Strategy]) -> bool:
    """Whether it takes noise out of a canvas, and not masks."""
    return issubclass(kind, Renoise)


def make_strategy(
    options: DecodeOptions, strategies: Strategies = BUILT_IN
) -> Stepwise | Renoise | Apd:
    """Make the strategy that the options name, with what it reads of them.

    Args:
        options: of the run; ``strategy`` is ``name`` or ``name{option=value}``.
        strategies: where the name is looked up, ``Registry.strategies`` with plugins.

    Raises:
        UnknownName: an unknown strategy, with the nearest names.
        InvalidPipeline: text that does not parse, or an option of its own that it refuses.
        QdcError: a shared option that the strategy does not read, or one that is given twice.
    """
    item = parse_item(options.strategy, "strategy")
    kind = find_named("strategy", item.name, strategies, strategies)
    _refuse_ignored(options, kind, strategies)
    written = {name.replace("-", "_") for name in item.options}
    twice = sorted(written & options.model_fields_set & set(SHARED))
    if twice:
        raise _refused(f"{', '.join(twice)} is given both in the strategy and as an option")
    shared = {n: getattr(options, n) for n in SHARED if n in kind.model_fields and n not in written}
    given = {name: value for name, value in shared.items() if value is not None}
    strategy = configured(kind, item, options.strategy, given)
    if not isinstance(strategy, Stepwise | Renoise | Apd):
        raise QdcError(
            f"the strategy {kind.name} does not say what its steps decide",
            help="subclass Stepwise, as docs/writing_strategies.md shows",
        )
    return strategy


def check_canvas(strategy: Strategy, facts: DecodeFacts) -> None:
    """Refuse a strategy of masks for a model of noise, and the other way round.

    Raises ``QdcError``, which says what the model is decoded by.
    """
    name = strategy.name
    if facts.canvas is not None and not isinstance(strategy, Renoise):
        raise QdcError(
            f"the strategy {name} fills masked places, and the model has no mask token: it takes "
            f"random tokens out of canvases of {facts.canvas}",
            help=f"leave --strategy out, or take {Renoise.name}",
        )
    if facts.canvas is None and isinstance(strategy, Renoise):
        raise QdcError(
            f"the strategy {name} takes random tokens out of a canvas, and the model was trained "
            "to fill masks",
            help="leave --strategy out, or take one of masks: qdc strategies lists them",
        )


def own_strategy(facts: DecodeFacts) -> str:
    """The strategy that the published code of a kind of model samples with.

    What the facts name as usual, else LLaDA's default, the one of Dream's README, of SDAR and of
    Fast-dLLM v2: they are told apart by which position predicts a token, and whether attention goes
    by blocks.
    """
    if facts.usual:
        rest = " ".join(f"{n}={v}" for n, v in facts.usual.items() if n not in OF_THE_LOOP)
        return f"{facts.usual['strategy']}{{{rest}}}" if rest else str(facts.usual["strategy"])
    if facts.attention_block is None:
        return Entropy.name if facts.logits_shift else LowConfidence.name
    return Threshold.name if facts.logits_shift else Dynamic.name


def _refuse_ignored(options: DecodeOptions, kind: type[Strategy], known: Strategies) -> None:
    read = shared_options(kind)
    wrong = []
    for name in SHARED:
        default = DecodeOptions.model_fields[name].default
        if name not in read and getattr(options, name) != default:
            readers = ", ".join(n for n, each in known.items() if name in shared_options(each))
            wrong.append(f"{name} has no effect on {kind.name}; it is read by {readers}")
    if options.cache_bits is not None and options.cache == "none":
        wrong.append("cache_bits has no effect without a cache; it is read by prefix, dual")
    if needs_verifier(kind) and (options.cache != "none" or options.cfg or options.forbid_eos):
        wrong.append("apd has its own window of keys and takes no cache, cfg or forbid_eos")
    if issubclass(kind, Renoise) and (options.cfg or options.forbid_eos):
        wrong.append("renoise takes no cfg, which masks the prompt, and no forbid_eos")
    if issubclass(kind, Renoise) and options.cache == "dual":
        wrong.append("nothing is behind a canvas, so renoise takes no cache dual, but prefix")
    if wrong:
        raise _refused(*wrong)


def _refused(*reasons: str) -> QdcError:
    return QdcError(DecodeOptions.refusal, where=reasons, help=DecodeOptions.manual)
