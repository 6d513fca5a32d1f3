"""Fill masks with llama.cpp: the denoising loop of LLaDA over a GGUF file that qdc has written.

    qdc compile examples/tiny-llada -o tiny.gguf --passes gguf --backend gguf
    python examples/llamacpp_generate.py tiny.gguf "def add(a, b):" --tokens 24

All masks stand behind the prompt. A step computes the logits of all positions, and fills in the
masks of which the model is surest, until none is left. Needs the package ``xllamacpp``.
"""

import argparse
from pathlib import Path

import numpy as np
from llamacpp import Engine


def generate(
    engine: Engine, prompt: list[int], tokens: int, steps: int, shift: int = 0
) -> list[int]:
    """Token ids behind the prompt, in ``steps`` forwards.

    Args:
        engine: the model.
        prompt: token ids.
        tokens: masks behind it.
        steps: forwards; as many masks are filled in each.
        shift: 1 where position i of the logits predicts token i + 1, as Dream's do.
    """
    ids = np.array(prompt + [engine.mask] * tokens)
    for left in range(steps, 0, -1):
        masked = np.flatnonzero(ids == engine.mask)
        logits = engine(ids.tolist())[np.maximum(masked - shift, 0)]
        logits[:, engine.mask] = -np.inf
        logits -= logits.max(axis=1, keepdims=True)
        sure = 1 / np.exp(logits).sum(axis=1)
        chosen = np.argsort(-sure, kind="stable")[: -(-len(masked) // left)]
        ids[masked[chosen]] = logits[chosen].argmax(axis=1)
    return [int(each) for each in ids[len(prompt) :]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill masks with llama.cpp.")
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--shift", type=int, default=0, choices=(0, 1))
    given = parser.parse_args()
    engine = Engine(given.model, 256)
    prompt = engine.encode(given.prompt)
    print(
        given.prompt
        + engine.decode(generate(engine, prompt, given.tokens, given.steps, given.shift))
    )


if __name__ == "__main__":
    main()
