"""The model that the lm-evaluation-harness asks. Imports lm-eval, an optional extra."""

from collections import Counter
from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from qdc.evaluation.harness.generation import answer, question
from qdc.evaluation.harness.likelihood import is_greedy, score
from qdc.evaluation.harness.options import LikelihoodOptions
from qdc.evaluation.harness.passages import Passage, encode_pair, passage, rolling
from qdc.evaluation.harness.subject import Subject
from qdc.runtime.decoding.options import DecodeOptions
from qdc.units import Progress, StepProgress


class DiffusionLM(LM):
    """Answers the requests of the harness with a masked-diffusion model.

    Likelihoods are Monte-Carlo estimates of a bound, with masks that depend on the request's text
    and the seed alone; ``checks_greedy`` says whether the second result of a likelihood is wanted,
    which costs forwards. Answers are written by the decoding loop under ``decoding``, of which
    what the user has set wins over a task's.
    """

    def __init__(
        self,
        subject: Subject,
        likelihood: LikelihoodOptions,
        decoding: DecodeOptions | None = None,
        *,
        checks_greedy: bool = True,
        progress: StepProgress | None = None,
    ) -> None:
        """Take a loaded model. Raises ``QdcError`` if the scorer needs an end that it lacks."""
        super().__init__()
        self.subject, self.options, self.decoding = subject, likelihood, decoding
        self.checks_greedy, self.report = checks_greedy, progress
        self.truncated = 0
        """Requests whose prompt was cut to the model's length."""
        self.end = None
        if likelihood.scorer == "dream-published":
            self.end = subject.required_end("dream-published puts one behind each answer")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Estimate each ``(context, continuation)``; False where greediness is not checked."""
        encode, before = self.subject.encode, self.subject.before
        pairs = [encode_pair(encode, *map(str, request.args)) for request in requests]
        passages = [self._passage([*before, *prompt], target) for prompt, target in pairs]
        found = self._score(passages)
        if not self.checks_greedy:
            return [(value, False) for value in found]
        facts, logits = self.subject.facts, self.subject.logits
        told = self._progress("greedy answers")
        greedy = []
        for each in passages:
            greedy.append(is_greedy(logits, each, facts, self.options))
            told(len(greedy), len(passages))
        return list(zip(found, greedy, strict=True))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Estimate each whole text: windows that do not overlap, the last one filled up."""
        prefix = self._prefix()
        longest = self.subject.facts.max_length - (self.end is not None)
        passages: list[Passage] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.subject.encode(str(request.args[0]))
            windows = list(rolling(tokens, longest, prefix))
            passages += [self._passage(prompt, target) for prompt, target in windows]
            owners += [number] * len(windows)
        found = [0.0] * len(requests)
        for owner, value in zip(owners, self._score(passages), strict=True):
            found[owner] += value
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer to each ``(context, settings)``, cut at the stops of the task."""
        asked: Counter[str] = Counter()
        questions = []
        for request in requests:
            context, settings = str(request.args[0]), dict(request.args[1])
            key = repr((context, settings))
            questions.append(question(self.subject, context, settings, self.decoding, asked[key]))
            asked[key] += 1
        self.truncated += sum(each.truncated for each in questions)
        return answer(self.subject, questions, self.options.batch, self._progress("answers"))

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's caches, which are not used."""
        return "qdc"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a dialogue in the tokenizer's chat template."""
        return self.subject.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, as the harness notes it."""
        template = self.subject.tokenizer.chat_template
        return template if isinstance(template, str) else None

    def _prefix(self) -> Sequence[int]:
        """What stands in front of a text that has no context.

        What stands in front of every text. Without that nothing, unless logits are shifted: then
        something must predict the first token.
        """
        if self.subject.before or not self.subject.facts.logits_shift:
            return self.subject.before
        return (self.subject.required_end("the first token has nothing that predicts it"),)

    def _passage(self, prompt: Sequence[int], target: Sequence[int]) -> Passage:
        given = prompt or self._prefix()
        found = passage(given, target, self.subject.facts.max_length, self.end)
        self.truncated += found.start < len(given)
        return found

    def _score(self, passages: Sequence[Passage]) -> list[float]:
        subject, told = self.subject, self._progress("likelihoods")
        return score(subject.logits, passages, subject.facts, self.options, told)

    def _progress(self, what: str) -> Progress:
        def told(done: int, total: int) -> None:
            if self.report is not None:
                self.report(what, done, total)

        return told
