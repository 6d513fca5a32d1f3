"""The backends that come with qdc."""

from .cpu.backend import Cpu
from .gguf import Gguf
from .reference import Reference
from .triton.backend import Triton

BACKENDS = (Reference, Cpu, Triton, Gguf)
