"""Pipelines: what a pass and a backend are, their text, their order, and where they are found."""
