"""Decoding: from prompts to answers, by one loop with exchangeable strategies and caches."""
