"""``model.generate`` of transformers, answered by the decoding loop of qdc.

The loop of transformers writes one token after another with a model that looks back only. A masked
diffusion model under it would give text, and none that means anything.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from qdc.errors import QdcError, UnsupportedModel, nearest
from qdc.ir.facts import ModelFacts
from qdc.models.masks import read_mask
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.strategies import make_strategy, needs_verifier

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "length_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "typical_p": (1,),
    "use_cache": (True,),
}
"""Parameters whose effect is not offered, with the values beside None, False and nothing at all
that ask for none. ``use_cache`` changes no answer of transformers; ``cache`` is qdc's own."""

INERT = frozenset(("bos_token_id", "tokenizer", "transformers_version", "disable_compile"))
"""Parameters that by themselves ask for nothing."""

READ = frozenset(
    ("max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k",
     "eos_token_id", "pad_token_id")
)  # fmt: skip
"""Parameters of transformers that are read."""

OWN = frozenset(DecodeOptions.model_fields) - {"length"}
"""Options of decoding, under their own names."""

HELP = (
    "leave it out; generate takes "
    + ", ".join(sorted(READ))
    + ", and the options of qdc generate, as steps=64 or strategy='threshold'"
)


class Prompts(NamedTuple):
    """Rows of tokens as they were given, and each row's prompt without padding."""

    ids: Tensor
    rows: list[list[int]]


def run_loop(
    model: PreTrainedModel,
    facts: ModelFacts,
    usual: Mapping[str, object],
    ids: Tensor | None,
    mask: object,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> Tensor:
    """Write an answer behind each row.

    Args:
        model: gives ``(logits,)``, as ``OwnModel`` does.
        facts: of the model.
        usual: options of decoding of the model's own sampler.
        ids: ``i64[batch, T]``; None is one empty prompt.
        mask: nothing, or ``[batch, T]``, 0 for padding, on either side.
        config: parameters that hold where ``options`` does not say otherwise.
        options: parameters of transformers and options of decoding.

    Returns:
        ``i64[batch, T + longest answer]``: the rows, their answers with the end that was written,
        and padding.

    Raises:
        QdcError: a parameter is unknown or not offered, or prompt and answer do not fit.
        UnsupportedModel: the model is decoded by canvases of noise.
    """
    if facts.canvas is not None:
        raise UnsupportedModel(
            "generate of these classes fills masks, and the model takes noise out of a canvas",
            help="qdc generate, or qdc.runtime.decoding.loop.decode with qdc.load",
        )
    own = getattr(model, "generation_config", None)
    given = {**_said(own), **_said(config), **options}
    _refuse(given)
    prompts = _prompts(ids, mask, facts, model.device)
    asked, drawn = _asked(given, prompts, facts, usual)
    ends = _ends(given.get("eos_token_id"), facts)
    seeds = None
    if drawn:  # transformers' set_seed fixes these
        seeds = torch.randint(1 << 62, (len(prompts.rows),)).tolist()
    known = DecodeFacts.of(facts, ends[0] if ends else None, ends)
    found = decode(_Logits(model), prompts.rows, asked, known, seeds=seeds)
    pad = given.get("pad_token_id")
    written = [_up_to_end(row, ends) for row in found.tokens[:, -asked.length :].tolist()]
    width = max(map(len, written))
    fill = pad if pad is not None else ends[0] if ends else 0
    answers = torch.tensor([row + [fill] * (width - len(row)) for row in written])
    return torch.cat((prompts.ids, answers.to(prompts.ids.device)), 1)


class _Logits(nn.Module):
    """The model as the loop calls it; its parts are still seen, so that caches work."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T]``, mask ``[batch, T]`` ``-> [batch, T, vocabulary]``."""
        logits: Tensor = self.model(tokens, mask, return_dict=False)[0]
        return logits


def _said(config: GenerationConfig | None) -> dict[str, Any]:
    """What a configuration says other than nothing."""
    said = {} if config is None else config.to_diff_dict()
    return {n: value for n, value in said.items() if value is not None and not n.startswith("_")}


def _refuse(given: Mapping[str, Any]) -> None:
    """Refuse what would be ignored. Raises ``QdcError``."""
    known = {*vars(GenerationConfig()), *NEUTRAL}  # type: ignore[no-untyped-call]
    for name, value in given.items():
        if name in READ | OWN | INERT or value is None or value is False:
            continue
        if isinstance(value, list | tuple | dict) and not value:
            continue
        if isinstance(value, int | float) and value in NEUTRAL.get(name, ()):
            continue
        if name in known or name in ("streamer", "logits_processor", "stopping_criteria"):
            shown = f"={value}" if isinstance(value, int | float | str) else ""
            raise QdcError(
                f"generate does not offer {name}{shown[:80]}: the decoding loop of a diffusion "
                "model has nothing of the kind",
                help=HELP,
            )
        raise QdcError(
            f"generate knows no parameter {name[:64]!r}", help=nearest(name[:64], READ | OWN)
        )


def _prompts(ids: Tensor | None, mask: object, facts: ModelFacts, device: torch.device) -> Prompts:
    if ids is None:
        ids = torch.zeros(1, 0, dtype=torch.int64, device=device)
    if ids.dim() != 2:
        raise QdcError(f"input_ids is {list(ids.shape)}, need [batch, T]")
    read = read_mask(mask, ids, facts.attention_block)
    if read is None:
        return Prompts(ids, ids.tolist())
    if read.dim() != 2:
        raise QdcError(
            f"generate takes attention_mask [batch, T], found {list(read.shape)}",
            help="give 1 for tokens and 0 for padding",
        )
    visible = read.bool().expand(ids.shape)
    rows = []
    for number, (row, seen) in enumerate(zip(ids.tolist(), visible.tolist(), strict=True)):
        first = seen.index(True) if True in seen else 0
        last = first + sum(seen)
        if not all(seen[first:last]):
            raise QdcError(
                f"attention_mask of row {number} hides tokens within the prompt",
                help="generate takes padding on the left or on the right alone",
            )
        rows.append(row[first:last])
    return Prompts(ids, rows)


def _asked(
    given: Mapping[str, Any], prompts: Prompts, facts: ModelFacts, usual: Mapping[str, object]
) -> tuple[DecodeOptions, bool]:
    """The options, and whether seeds are to be drawn."""
    fields = {name: given[name] for name in OWN - READ if given.get(name) is not None}
    longest = max(map(len, prompts.rows), default=0)
    if given.get("max_new_tokens") is not None:
        fields["length"] = given["max_new_tokens"]
    elif given.get("max_length") is not None:
        fields["length"] = given["max_length"] - prompts.ids.shape[1]
        if fields["length"] < 1:
            raise QdcError(
                f"max_length of {given['max_length']} leaves no room behind "
                f"{prompts.ids.shape[1]} tokens",
                help="give max_new_tokens, the tokens of the answer alone",
            )
    else:
        length = DecodeOptions.model_fields["length"].default
        fields["length"] = max(1, min(length, facts.max_length - longest))
    drawing = given.get("do_sample")
    temperature = given.get("temperature")
    if drawing is None:
        drawing = temperature is not None and temperature != 0
    if drawing:
        fields["temperature"] = 1.0 if temperature is None else temperature
        fields |= {n: given[n] for n in ("top_p", "top_k") if given.get(n) is not None}
        if fields.get("top_k") == 0:
            del fields["top_k"]
    options = DecodeOptions.parse(**fields).settled(usual)
    if needs_verifier(type(make_strategy(options))):
        raise QdcError(
            "generate has no verifier, which the strategy apd needs", help="choose another strategy"
        )
    return options, bool(drawing) and "seed" not in fields


def _ends(given: object, facts: ModelFacts) -> tuple[int, ...]:
    """Tokens that end an answer, of which there may be one, several or none.

    What the model cannot write is left out, as configurations may name it. Raises ``QdcError``.
    """
    if isinstance(given, Tensor):
        given = given.tolist()
    listed = () if given is None else given if isinstance(given, list | tuple) else (given,)
    if any(type(token) is not int for token in listed):
        raise QdcError(f"eos_token_id is {str(given)[:64]}, need token ids")
    written = (t for t in listed if 0 <= t < facts.vocabulary and t != facts.mask_token_id)
    return tuple(dict.fromkeys(written))


def explain_native(name: str, *_: object, **__: object) -> Tensor:
    """In place of ``generate`` of a class of transformers. Raises ``QdcError`` always."""
    raise QdcError(
        f"generate of {name} writes one token after another with a model that looks back, "
        "and this one was compiled to see both directions",
        help="qdc generate ARTIFACT, or qdc.runtime.decoding.loop.decode with qdc.load(ARTIFACT)",
    )


def _up_to_end(row: list[int], ends: tuple[int, ...]) -> list[int]:
    """An answer with the first end in it."""
    place = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[: place + 1]
