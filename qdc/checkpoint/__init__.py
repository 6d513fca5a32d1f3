"""Folders of safetensors with a configuration, as they are published."""
