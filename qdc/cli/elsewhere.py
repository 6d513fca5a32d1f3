"""Options that people expect of a command and that are somewhere else."""

from typing import get_args

BITS = "gptq-lower{bits=4}"
"""A quantizer with a width to choose, for an example."""


def found_elsewhere(command: str, option: str) -> str:
    """What to type instead of an option that a command does not have; empty if nothing is known."""
    if command not in ("compile", "plan"):
        return ""
    if option in ("--bits", "--wbits", "-b", "--budget"):
        return (
            "the pipeline decides the bits, 2 on average if not told otherwise: --passes small for "
            "1.5, large for 3; quantizers that have other widths are asked for them there, as in\n"
            f"        --passes 'stages(calibrate-mcs,sensitivity,{BITS}),pack'"
        )
    if option in ("--format", "--to", "--type"):
        from qdc.exporting.options import Format
        from qdc.pipeline.registry import standard_registry

        backends = ", ".join(standard_registry().backends)
        return (
            f"who writes the artifact is --backend: {backends}; what other programs read is made "
            f"of an artifact: qdc export OUT -o DIR --format {' | '.join(get_args(Format))}"
        )
    if option in ("--method", "--methods", "--preset", "--pipeline"):
        return "a method is a pipeline: --passes NAME; qdc passes lists them"
    return ""
