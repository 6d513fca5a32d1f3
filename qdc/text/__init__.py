"""Text, records and tokens: what calibration and evaluation read."""
