"""What a compile did: as data, and as a page that a person reads.

``model`` holds the data, ``collect`` reads it off a compile, ``figures`` draws, ``page`` lays out,
``files`` writes both forms beside the artifact.
"""

from qdc.report.collect import layer_reports
from qdc.report.model import CompileReport, LayerReport, PassReport

__all__ = ["CompileReport", "LayerReport", "PassReport", "layer_reports"]
