"""Importing this lets transformers load artifacts: ``AutoModel.from_pretrained(artifact)``.

It registers the quantization method ``qdc``, and a class for each model family that qdc implements
and transformers does not, and lets ``fill-mask`` know of shifted logits. Weights stay packed;
``model.dequantize()`` makes them dense. ``docs/huggingface.md`` shows how.
"""

from qdc.hf.models import register_models
from qdc.hf.pipelines import align_fill_mask
from qdc.hf.quantizer import register_method
from qdc.hf.settings import use_plugins, verify_files
from qdc.pipeline.registry import standard_registry

__all__ = ["use_plugins", "verify_files"]

register_method()
register_models(standard_registry().families)
align_fill_mask()
