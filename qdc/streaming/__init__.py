"""How samples move through the model region by region, and what a pass may touch of it."""
