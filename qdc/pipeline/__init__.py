"""Pipelines: their text, the order of their passes, and the one runner."""
