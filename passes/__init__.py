"""The passes that come with qdc, and the pipelines that have a name."""

from qdc.pipeline.preset import Preset

from .abmp_allocate import AbmpAllocate
from .allocate import Allocate
from .calibrate_cross import CalibrateCross
from .calibrate_mcs import CalibrateMcs
from .daq_lower import DaqLower
from .gguf_lower import GgufLower
from .gguf_vocab import GgufVocab
from .gptq_lower import GptqLower
from .measure_orders import MeasureOrders
from .pack import Pack
from .polish import Polish
from .probe_loss import ProbeLoss
from .quantize_vocab import QuantizeVocab
from .rtn_lower import RtnLower
from .sensitivity import Sensitivity

PASSES = (
    QuantizeVocab,
    GgufVocab,
    CalibrateMcs,
    CalibrateCross,
    Sensitivity,
    MeasureOrders,
    ProbeLoss,
    AbmpAllocate,
    Allocate,
    DaqLower,
    RtnLower,
    GptqLower,
    GgufLower,
    Polish,
    Pack,
)
PRESETS = {
    "default": Preset(
        "quantize-vocab,stages(calibrate-cross,sensitivity{damp=0.1},abmp-allocate,"
        "daq-lower{asymmetry=1}),pack"
    ),
    "best": Preset(
        "quantize-vocab,calibrate-mcs,sensitivity{block=256},measure-orders{scale-bits=8},"
        "probe-loss{block=256},allocate{scope=model weights=loss},"
        "stages(calibrate-cross,sensitivity{damp=0.1 block=256},"
        "daq-lower{scale-bits=8 asymmetry=1}),polish,pack"
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
        "quantize-vocab,stages(calibrate-cross,sensitivity{damp=0.1},"
        "abmp-allocate{ratio=0},daq-lower{asymmetry=1}),pack"
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
    "arb-rc": Preset(
        "stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0},"
        "daq-lower{outlier-weight=1 compensation=diag feedback=false}),pack",
        2,
        "arXiv 2410.03129",
    ),
    "data-free": Preset("rtn-lower,pack"),
}
