"""Do the work of a library: see ``qdc.comparing.worker``, which does that of pipelines.

python -m bench.peers.worker WORK.json RESULT.json
"""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from bench.common.samples import calibration_states
from bench.peers import isolated
from bench.peers.placing import with_weights
from qdc.comparing.result import Cost
from qdc.comparing.work import Work
from qdc.comparing.worker import Made, main, peak_bytes
from qdc.errors import QdcError
from qdc.units import StepProgress


def library(work: Work, tell: StepProgress) -> Made:
    """Quantize by a library under its own interpreter, on the samples of ``calibrate-mcs``."""
    load, told = os.getloadavg(), work.extra
    drawn: dict[str, Any] = {**work.calibration.overrides, **told.get("drawn", {})}
    states = calibration_states(work.model, work.seed or 0, work.calibration.text, **drawn)
    if states.segments is not None:
        raise QdcError(
            "libraries let all positions of a sample see each other",
            help="leave out pack=pad and isolate",
        )
    tell(told["peer"], 0, 1)
    found = isolated.quantize(
        Path(told["python"]),
        told["peer"],
        work.model,
        states.tokens,
        work.seed or 0,
        **told["options"],
    )
    cost = Cost(
        seconds=found.seconds,
        processor_seconds=found.processor_seconds,
        peak_bytes=peak_bytes(resource.RUSAGE_CHILDREN),
        threads=torch.get_num_threads(),
        load=load,
    )
    fields = {
        "version": f"{found.name} {found.version}",
        "sign_bits": found.code_bits,
        "effective_bits": found.effective_bits,
        "file_bytes": None,
        "layers": {},
        "passes": {},
        "notes": found.notes,
    }
    return Made(with_weights(work.model, found.weights), cost, fields)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], library))
