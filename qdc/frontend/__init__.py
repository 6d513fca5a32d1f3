"""From a checkpoint folder to a layer graph."""
