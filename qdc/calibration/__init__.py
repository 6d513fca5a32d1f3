"""Calibration: text, its tokens, and the masked samples a compilation reads."""
