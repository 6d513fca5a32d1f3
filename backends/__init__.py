"""The backends that come with qdc."""

from .reference import Reference

BACKENDS = (Reference,)
