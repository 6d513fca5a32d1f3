"""The passes that come with qdc, and the pipelines that have a name."""

from .abmp_allocate import AbmpAllocate
from .calibrate_mcs import CalibrateMcs
from .daq_lower import DaqLower
from .pack import Pack
from .polish import Polish
from .quantize_vocab import QuantizeVocab
from .rtn_lower import RtnLower
from .sensitivity import Sensitivity

PASSES = (
    QuantizeVocab,
    CalibrateMcs,
    Sensitivity,
    AbmpAllocate,
    DaqLower,
    RtnLower,
    Polish,
    Pack,
)
PRESETS = {
    "default": "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack",
    "uniform": "stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0},daq-lower),pack",
    "rtn": "stages(calibrate-mcs,rtn-lower),pack",
    "data-free": "rtn-lower,pack",
}
