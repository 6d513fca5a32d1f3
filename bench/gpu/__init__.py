"""What the triton backend does on a card: ``python -m bench.gpu``."""
