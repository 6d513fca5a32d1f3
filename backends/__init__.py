"""The backends that come with qdc."""

from .reference import Reference
from .triton.backend import Triton

BACKENDS = (Reference, Triton)
