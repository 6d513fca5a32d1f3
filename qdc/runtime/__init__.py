"""Runtime: what a model does once it is there, how well it predicts and how it fills gaps."""
