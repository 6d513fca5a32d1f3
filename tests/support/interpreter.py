"""Triton's interpreter for this process: to be imported before any kernel is."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
