"""Text to calibrate on."""

TEXT = "a deterministic walk through the standard library, one word after another. " * 40
