"""How much the stage-by-stage stream saves against forwarding each region once for every stage.

    python -m bench.streaming --model examples/tiny-llada

Both sides collect the same second moments on the same masked samples with full-precision weights,
in one process, in turns. The peer does what the released code does for every module group: run the
whole region with hooks, for all samples, then once more to get the next region's inputs. Prints
seconds (median of the rounds), the ratio, and the largest difference between the moments.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import qdc
from bench.common.clocks import Stopwatch
from bench.common.processes import EMBEDDED
from bench.common.samples import calibration_states
from qdc.comparing.hooks import watching
from qdc.frontend.opening import open_model
from qdc.numerics.moment import MomentAccumulator
from qdc.streaming.stream import Stream

Moments = dict[str, Tensor]


def streamed(folder: Path, batches: list[Tensor]) -> tuple[Moments, float]:
    """Collect the moments as the compiler does; also return the linears executed."""
    checkpoint, program = open_model(folder)

    def weights(name: str) -> dict[str, Tensor]:
        parameters = program.graph[name].parameters
        return {p.role: checkpoint.tensor(p.name).float() for p in parameters}

    stream = Stream(program, batches, weights, torch.device("cpu"))
    found: Moments = {}
    for region in program.graph.regions:
        for stage in program.graph.waves[region.name].each():
            stream.enter(stage)
            accumulator = MomentAccumulator(program.graph[stage.layers[0]].columns)
            for value in stream.values(stage):
                accumulator.add(value)
            found[stage.value] = accumulator.value()
        stream.leave(region)
    return found, stream.linear_calls


@torch.no_grad()
def forwarded(folder: Path, batches: list[Tensor]) -> tuple[Moments, int]:
    """Collect the same moments with one whole region forward for each stage."""
    _, program = open_model(folder)
    model, calls = qdc.load_original(folder), 0
    names = program.graph
    hidden: list[Tensor] = []
    first = names[names.regions[0].nodes[0]].inputs[0]
    embedding = model.get_submodule(names[first].path)
    hidden = [embedding(batch) for batch in batches]
    found: Moments = {}
    for region in names.regions:
        block = model.get_submodule(names.structure.prefix + region.name)
        for stage in region.stages:
            layer = names[stage.layers[0]]
            accumulator = MomentAccumulator(layer.columns)

            def collect(
                read: Tensor, output: Tensor, into: MomentAccumulator = accumulator
            ) -> None:
                into.add(read)

            with watching(model, {layer.path: collect}):
                for value in hidden:
                    block(value, None)
                    calls += len(value) * 7
            found[stage.value] = accumulator.value()
        hidden = [block(value, None) for value in hidden]
        calls += sum(len(value) for value in hidden) * 7
    return found, calls


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    _, program = open_model(options.model)
    states = calibration_states(options.model, 0, samples=options.samples, length=options.length)
    batches = list(torch.split(states.tokens, 8))
    seconds: dict[str, list[float]] = {"streamed": [], "forwarded": []}
    results: dict[str, tuple[Moments, float]] = {}
    for _ in range(options.rounds):
        for name, side in (("streamed", streamed), ("forwarded", forwarded)):
            with Stopwatch() as watch:
                results[name] = side(options.model, batches)
            seconds[name].append(watch.seconds)
    layers = sum(1 for _ in program.graph.layers())
    for name, (_, calls) in results.items():
        forwards = calls / (options.samples * layers)
        print(
            f"{name:<10} {statistics.median(seconds[name]):7.2f} s   {forwards:.2f} layer forwards"
        )
    ratio = statistics.median(
        a / b for a, b in zip(seconds["streamed"], seconds["forwarded"], strict=True)
    )
    ours, theirs = results["streamed"][0], results["forwarded"][0]
    worst = max(float((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max()) for k in theirs)
    print(f"ratio      {ratio:7.2f}     largest relative difference of a moment {worst:.1e}")


if __name__ == "__main__":
    main()
