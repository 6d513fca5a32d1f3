"""The artifact in the making: what the first process of a compile, and it alone, writes."""

from pathlib import Path

from qdc.artifact.card import Figures, card_text
from qdc.artifact.digests import CARD
from qdc.artifact.emission import Emission
from qdc.artifact.partial import Partial
from qdc.artifact.writer import ArtifactWriter
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import layer_reports, outside_reports
from qdc.ir.graph import LayerGraph, Region
from qdc.pipeline.backendbase import Backend
from qdc.report.files import ReportWriter, discard_report
from qdc.report.model import CompileReport
from qdc.stopping import undisturbed
from qdc.streaming.workspace import Workspace


class Making:
    """Writes regions as they are finished, and then the rest."""

    def __init__(
        self,
        out: Path,
        backend: Backend,
        partial: Partial,
        workspace: Workspace,
        origin: dict[str, object],
        force: bool,
    ) -> None:
        """Begin in the folder of a compile.

        Args:
            out: where the artifact will be.
            backend: writes it.
            partial: the folder, locked.
            workspace: of the compile.
            origin: what the artifact says that it was made from.
            force: whether it may take the place of another.
        """
        self.backend, self.workspace, self.origin = backend, workspace, origin
        self.out, self.partial = out, partial
        self.writer = ArtifactWriter(
            out, force=force, folder=partial.artifact, single=backend.single_file
        )
        graph, tensors = workspace.program.graph, workspace.tensors
        self.emission = Emission(graph, tensors, workspace.checkpoint, self.writer, origin)

    def region_done(self, region: Region) -> None:
        """Write a region and let go of its tensors."""
        self.backend.emit_region(self.emission, region)
        self.workspace.release(region.nodes, scratch=False)

    def finish(self) -> None:
        """Write what is left, and seal all of it."""
        self.backend.finish(self.emission)
        checkpoint = self.workspace.checkpoint
        if self.backend.single_file is None:
            figures = _figures(self.workspace.program.graph, checkpoint, self.writer)
            self.writer.file(CARD, card_text(checkpoint, self.origin, figures))
        self.writer.seal()

    def commit(self, report: CompileReport, *, write_report: bool) -> None:
        """Make the artifact appear, and its report with it."""
        pages = ReportWriter(self.out, self.partial.report) if write_report else None
        if pages is not None:
            pages.stage(report)
        self.partial.note_commit()
        with undisturbed():
            self.writer.commit()
            if pages is None:
                discard_report(self.out)
            else:
                pages.commit()


def _figures(graph: LayerGraph, checkpoint: Checkpoint, writer: ArtifactWriter) -> Figures:
    """What the card of the artifact says in numbers."""
    rows = tuple(layer_reports(graph))
    weights = sum(row.weights for row in rows)
    beside = tuple(outside_reports(graph))
    every = (*rows, *beside)
    whole = 8 * sum(row.nbytes for row in every) / max(1, sum(row.weights for row in every))
    signs = all(row.bits_word == "sign bits" for row in rows)
    return Figures(
        layers=len(rows),
        weights=weights,
        bits_word="sign bits" if signs else "code bits",
        bits=sum(row.payload_bits for row in rows) / max(1, weights),
        effective_bits=8 * sum(row.nbytes for row in rows) / max(1, weights),
        whole_bits=whole if beside else None,
        bytes_before=checkpoint.nbytes,
        tensor_bytes=writer.tensor_bytes,
        rotated=sum(row.rotated for row in rows),
    )
