"""How well a model predicts: masked loss, agreement, gaps, tasks."""
