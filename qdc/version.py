"""The version of this package, without anything else: every other module may ask for it."""

__version__ = "0.1.0"
