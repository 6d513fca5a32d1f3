"""What passes that calibrate share: the drawing of their samples."""

from dataclasses import replace

import torch
from torch import Tensor

from qdc.ir.annotations import Moment
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import Node, Stage
from qdc.passkit import geometry
from qdc.passkit.calibration_fields import BLOCK_LENGTH, NOISE, CalibrationFields
from qdc.passkit.certainty import WITHOUT, Certainty, confidences, use_of
from qdc.passkit.geometry import Masked
from qdc.passkit.predictor import Predictor
from qdc.passkit.rollout import rollout, steps_to
from qdc.passkit.samples import Samples, draw_samples
from qdc.passkit.states import States
from qdc.passkit.tmas import PROMPT, sampled
from qdc.streaming.batches import Batches
from qdc.streaming.calibration import Calibration
from qdc.streaming.forecast import Forecast
from qdc.streaming.streamforecast import StreamForecast
from qdc.streaming.unit import Unit


class CalibrationOptions(CalibrationFields):
    """A pass that draws samples from the calibration text.

    Two passes with equal options see equal samples: they are a function of options and text alone,
    and of the original model for ``rollout`` and ``tmas``.
    """

    def draw(self, unit: Unit) -> States:
        """Draw the samples and mask them.

        Reads the text and, for ``rollout`` and ``tmas``, streams the original model, about once a
        step.

        Raises:
            InvalidCalibration: the text is too short, too little, or not what the tokenizer knows.
            UnsupportedModel: documents are to be kept apart, or padding is, and something in the
                model would mix them.
        """
        if self.segmented:
            unit.check_apart(isolate=self.isolate)
        clean, maskable, use, segments = self.draw_clean(unit.calibration(), unit.model)
        unit.note_text(use)
        found = None
        if self.chosen_geometry == "tmas":
            # A sample is rolled out once, however many of its states are seen.
            found = self._sample(unit, clean, maskable, segments)
        repeated = self.timesteps or 1
        clean, maskable = (t.repeat_interleave(repeated, 0) for t in (clean, maskable))
        if segments is not None:
            segments = segments.repeat_interleave(repeated, 0)
        tokens, masked = found or self._mask(unit, clean, maskable, segments)
        noise = self.chosen_geometry == NOISE
        states = States(clean, tokens, masked, self.weigh(masked), segments, noise)
        weights = states.weights * states.data * ~self._unseen(unit.model, masked)
        if self.asks_certainty:
            weights = weights * self._certainty(unit, states)
        return replace(states, weights=weights)

    def draw_clean(self, text: Calibration, model: ModelFacts) -> Samples:
        """Draw the samples without masks; the same ones are drawn once of a text.

        Raises:
            InvalidCalibration: the text is too short, too little, or not what the tokenizer knows.
        """
        rows, longest = text.source.rows, model.max_length
        length = self.length or (longest if rows is None else min(longest, rows.shape[1]))
        visible = self.visible(text.source)
        asked = (self.samples, length, self.seed, visible, self.pack, self.isolate)
        if asked not in text.drawn:
            text.drawn[asked] = draw_samples(
                text.source, text.encode, model, *asked[:-1], isolate=self.isolate
            )
        found = text.drawn[asked]
        assert isinstance(found, Samples)
        return found

    def travel(self, unit: Forecast, *, original: bool = False) -> StreamForecast:
        """The stream of this pass in a forecast; rollouts run the model on the way to it."""
        length = self.length or unit.model.max_length
        rows = self.samples * (self.timesteps or 1)
        if self.segmented and not unit.started:
            unit.check_apart(isolate=self.isolate)
        if not unit.started:
            self._foresee_rollouts(unit, length)
            if self.asks_certainty:
                segmented, every = self.segmented, rows * length
                unit.sweep(rows, length, self.batch, segmented=segmented, positions=every)
        apart = self.segmented
        return unit.stream(rows, length, self.batch, original=original, segmented=apart)

    def expect_moment(
        self, unit: Forecast, stage: Stage, layers: tuple[Node, ...], tokens: int
    ) -> None:
        """Say that the layers of a stage will carry a moment over so many tokens."""
        columns = layers[0].columns
        note = Moment(
            tensor=unit.put(stage, "moment", columns, columns),
            samples=self.samples,
            tokens=max(1, tokens),
            masked=0,
            geometry=self.chosen_geometry,
            masked_weight=self.masked_weight,
            token_weights=self.token_weights,
        )
        for node in layers:
            unit.annotate(node, note)

    def weigh(self, masked: Tensor) -> Tensor:
        """Weights ``f32[...]`` of positions, from the mask ``bool[...]``."""
        return 1 + (self.masked_weight - 1) * masked.float()

    def _foresee_rollouts(self, unit: Forecast, length: int) -> None:
        """Sweeps of the original model in front of the calibration itself."""
        if self.chosen_geometry == "rollout":
            rows = self.samples * (self.timesteps or 1)
            sweeps = steps_to(self.times(), self.steps).double().mean().item()
        elif self.chosen_geometry == "tmas":
            rows = self.samples
            visible = PROMPT if self.prefix is None else self.prefix
            steps = self.tmas().sampler.sweeps(length, int(visible * length), unit.model)
            sweeps = (steps * self.tmas().furthest(rows)).ceil().mean().item()
        else:
            return
        unit.sweep(rows, length, self.batch, times=sweeps, segmented=self.segmented)

    def _block(self, model: ModelFacts) -> int:
        """Tokens of a block of ``block-diffusion``."""
        return self.block_length or model.attention_block or BLOCK_LENGTH

    def _unseen(self, model: ModelFacts, masked: Tensor) -> Tensor:
        """Which tokens no sampler has in the model, ``bool[N, length]``: they count nothing.

        Where attention goes by blocks, a sampler holds the blocks up to the one in work alone, and
        no token of them sees a later one.
        """
        if self.chosen_geometry != "block-diffusion" or not model.denoises_blocks:
            return torch.zeros_like(masked)
        return geometry.behind_work(masked, self._block(model))

    def _certainty(self, unit: Unit, states: States) -> Tensor:
        """What tokens weigh by confidence, ``f32[N, length]``."""
        rule = Certainty(self.token_weights, self.certainty_base, self.certainty_exponent)
        batches = Batches.split(states.tokens, states.segments, self.batch)
        wanted = torch.split(states.data, self.batch)
        confidence = confidences(Predictor.of(unit, WITHOUT), batches, wanted)
        weights = rule.weights(confidence, states.masked)
        unit.note_certainty(use_of(rule, confidence, weights, states.masked, states.data))
        return weights

    def _sample(
        self, unit: Unit, clean: Tensor, maskable: Tensor, segments: Tensor | None
    ) -> Masked:
        predictor = Predictor.of(unit)
        states, use = sampled(predictor, clean, maskable, self.tmas(), self.batch, segments)
        unit.note_states(use)
        return states

    def _mask(
        self, unit: Unit, clean: Tensor, maskable: Tensor, segments: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.chosen_geometry == "clean":
            return geometry.unmasked(clean)
        model = unit.model
        if self.chosen_geometry == NOISE:
            assert model.canvas is not None, "check has refused every other model"
            return geometry.noised(
                clean, maskable, self.times(), model.vocabulary, model.canvas, self.seed
            )
        mask_id, seed = unit.model.mask, self.seed
        times = self.times()
        if self.chosen_geometry == "block-diffusion":
            own = unit.model.attention_block
            size, aligned = self._block(unit.model), own is not None
            return geometry.block_diffusion(
                clean, maskable, times, mask_id, seed, size, aligned=aligned
            )
        if self.chosen_geometry == "rollout":
            return rollout(
                unit, clean, maskable, times, self.steps, self.block_length, self.batch, segments
            )
        return geometry.scattered(clean, maskable, times, mask_id, seed)
