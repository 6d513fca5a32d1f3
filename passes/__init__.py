"""The passes that come with qdc, and the pipelines that have a name."""

from qdc.pipeline.preset import Preset

from .abmp_allocate import AbmpAllocate
from .allocate import Allocate
from .allocate_rates import AllocateRates
from .aqlm_lower import AqlmLower
from .arb_lower import ArbLower
from .billm_lower import BillmLower
from .bpdq_lower import BpdqLower
from .calibrate_cross import CalibrateCross
from .calibrate_mcs import CalibrateMcs
from .daq_lower import DaqLower
from .db_lower import DbLower
from .distill import Distill
from .engine_lower import EngineLower
from .gguf_lower import GgufLower
from .gguf_vocab import GgufVocab
from .gptq_lower import GptqLower
from .guide import Guide
from .measure_orders import MeasureOrders
from .pack import Pack
from .pb_llm_lower import PbLlmLower
from .polish import Polish
from .predict_error import PredictError
from .probe_loss import ProbeLoss
from .pt2_lower import Pt2Lower
from .quantize_activations import QuantizeActivations
from .quantize_vocab import QuantizeVocab
from .quip_lower import QuipLower
from .rotate import Rotate
from .rtn_lower import RtnLower
from .sbvr_lower import SbvrLower
from .sdq_allocate import SdqAllocate
from .sdq_lower import SdqLower
from .sensitivity import Sensitivity
from .slim_allocate import SlimAllocate
from .slim_lower import SlimLower
from .trellis_lower import TrellisLower

PASSES = (
    QuantizeVocab,
    GgufVocab,
    Rotate,
    QuantizeActivations,
    Guide,
    CalibrateMcs,
    CalibrateCross,
    Sensitivity,
    MeasureOrders,
    PredictError,
    ProbeLoss,
    AbmpAllocate,
    Allocate,
    AllocateRates,
    DaqLower,
    RtnLower,
    GptqLower,
    GgufLower,
    EngineLower,
    Pt2Lower,
    BillmLower,
    ArbLower,
    PbLlmLower,
    SlimAllocate,
    SlimLower,
    QuipLower,
    TrellisLower,
    SdqAllocate,
    SdqLower,
    BpdqLower,
    DbLower,
    SbvrLower,
    AqlmLower,
    Polish,
    Distill,
    Pack,
)


FEWER = "guide{outputs=true vocabulary=true},quantize-vocab{bits=4 rounding=guided}"
"""A vocabulary of 4 bits, whose errors show, and what says how they count."""


def rated(start: str, budget: str) -> Preset:
    """Trellis codes, each layer at the rate that its errors deserve, behind such a start."""
    return Preset(
        f"{start},calibrate-mcs,sensitivity{{damp=0.1}},"
        f"predict-error{{outputs=guided}},allocate-rates{{{budget}weights=guided}},"
        "stages(calibrate-cross{token-weights=guided},sensitivity{damp=0.1},"
        "trellis-lower{asymmetry=1 bits=allocated rounds=1 outputs=guided}),pack"
    )


PRESETS = {
    "default": Preset(
        "quantize-vocab,stages(rotate,calibrate-cross,"
        "sensitivity{damp=0.1 block=256 widths=even},abmp-allocate,"
        "daq-lower{tolerance=0.001 scale-bits=8 asymmetry=1}),pack"
    ),
    "best": rated("quantize-vocab,guide{outputs=true}", ""),
    "two": rated(FEWER, "count=effective "),
    "small": rated(FEWER, "budget=1.5 count=layers "),
    "large": rated("quantize-vocab,guide{outputs=true}", "budget=3 count=layers "),
    "best-signs": Preset(
        "quantize-vocab,guide{outputs=true},stages(rotate,calibrate-cross{token-weights=guided},"
        "sensitivity{damp=0.1 block=256 widths=even},abmp-allocate,"
        "daq-lower{tolerance=0.001 scale-bits=8 asymmetry=1 outputs=guided}),pack"
    ),
    "release": Preset(
        "stages{order=outputs-first}(calibrate-mcs{prefix=0.25},sensitivity,"
        "abmp-allocate{scope=layer},daq-lower{tolerance=0 compensation=diag feedback=false}),pack",
        2,
        "arXiv 2510.03274, released code",
    ),
    "paper": Preset(
        "stages(calibrate-mcs{prefix=0.25},sensitivity{importance=marginal},"
        "abmp-allocate{scope=layer},daq-lower{fit=greedy sigma=3 two-sided=true outlier-weight=4 "
        "importance=marginal outliers-of=original compensation=none feedback=false}),pack",
        2,
        "arXiv 2510.03274",
    ),
    "uniform": Preset(
        "quantize-vocab,stages(rotate,calibrate-cross,"
        "sensitivity{damp=0.1 block=256 widths=even},abmp-allocate{ratio=0},"
        "daq-lower{tolerance=0.001 scale-bits=8 asymmetry=1}),pack"
    ),
    "rtn": Preset("stages(calibrate-mcs,rtn-lower),pack", 2),
    "gptq": Preset(
        "stages(calibrate-mcs,sensitivity,gptq-lower{group=64 search=clip zero=packed}),pack",
        2,
        "arXiv 2210.17323",
    ),
    "gptaq": Preset(
        "stages(calibrate-cross{residual=false},sensitivity,"
        "gptq-lower{group=64 search=clip zero=packed asymmetry=0.25}),pack",
        2,
        "arXiv 2504.02692",
    ),
    "arb-rc-2": Preset(
        "stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0},"
        "daq-lower{outlier-weight=1 compensation=diag feedback=false}),pack",
        2,
        "arXiv 2410.03129",
    ),
    "data-free": Preset("rtn-lower,pack"),
}
