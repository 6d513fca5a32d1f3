"""How quantized weights are stored: each codec with its working, stored and trainable forms."""
