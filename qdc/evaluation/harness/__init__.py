"""Tasks of the lm-evaluation-harness: how a masked-diffusion model answers them."""
