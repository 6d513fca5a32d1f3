"""The backends that come with qdc."""

from .gguf import Gguf
from .reference import Reference
from .triton.backend import Triton

BACKENDS = (Reference, Triton, Gguf)
