"""Which files a compile leaves on the disk, and how large they and their runtimes are."""

from dataclasses import dataclass

from qdc.checkpoint.folder import Checkpoint
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.builder import build_backend
from qdc.pipeline.foreseen import Foreseen
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import Registry
from qdc.planning.companions import companions, note_lowered
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import BesideSize, RuntimeMemory, ShardSize
from qdc.planning.running import TOKENS, runtimes
from qdc.planning.storage import shards, stored
from qdc.streaming.account import Account
from qdc.streaming.forecast import NO_DIGEST
from qdc.text.source import EMBEDDED
from qdc.version import __version__


@dataclass(frozen=True)
class Files:
    """What will lie on the disk, and what running it takes."""

    shards: tuple[ShardSize, ...] = ()
    beside: tuple[BesideSize, ...] = ()
    uncounted: tuple[str, ...] = ()
    for_a_while: int = 0
    """Bytes of files that are gone at the end."""
    tokens: int = 0
    """Of a forward of what was compiled."""
    running: tuple[RuntimeMemory, ...] = ()
    """What running it takes, where the files are a folder that a runtime loads."""

    @classmethod
    def of(
        cls,
        options: PlanOptions,
        registry: Registry,
        plan: Plan,
        backend: Backend,
        account: Account,
        checkpoint: Checkpoint,
        base: int,
    ) -> "Files":
        """Nothing is known where a pass has no forecast: it may keep layers, or store otherwise."""
        graph = account.program.graph
        codecs = {name: codec for name, codec in account.codecs.items() if codec is not None}
        if account.unknown or len(codecs) < len(account.codecs):
            return cls()
        written = stored(account, [node.name for node in graph])
        foreseen = Foreseen(
            checkpoint=checkpoint,
            graph=graph,
            codecs={graph[name].path: codec for name, codec in codecs.items()},
            stored=dict(written),
            facts=_facts(options, registry, plan, backend),
            families=registry.families,
        )
        graph.after = str(plan)
        note_lowered(graph, codecs, registry)
        laid_out = build_backend("reference", registry) if backend.single_file else backend
        layout = laid_out.layout(graph)
        if layout is None:
            return cls(
                uncounted=(f"files: the backend {backend.name} does not say what it writes",)
            )
        parts = {shard.name: shard for shard in shards(account, layout)}
        tensors = {name: [key for key, _ in stored(account, layout[name])] for name in parts}
        beside = companions(backend, foreseen, {n: (parts[n], tensors[n]) for n in parts})
        unread = tuple(foreseen.unread)
        if backend.single_file is None:
            files = tuple(BesideSize(name=file.name, nbytes=file.nbytes) for file in beside)
            tokens = min(options.length or TOKENS, graph.model.max_length)
            running = runtimes(registry, graph, foreseen.codecs, tokens, base)
            return cls(tuple(parts.values()), files, unread, 0, tokens, tuple(running))
        whole = tuple(
            ShardSize(name=f.name, tensor_bytes=f.tensor_bytes, file_bytes=f.nbytes) for f in beside
        )
        # The one file is made of a whole folder, which is then removed.
        return cls(whole, (), unread, sum(shard.file_bytes for shard in parts.values()))


def _facts(
    options: PlanOptions, registry: Registry, plan: Plan, backend: Backend
) -> dict[str, object]:
    """What the configuration will say of its origin, with digests of the right length."""
    source = options.calibration
    calibration = {
        "name": EMBEDDED if source is None else source.name,
        "sha256": NO_DIGEST,
        "fields": list(options.fields.chat or (options.fields.text,)),
    }
    asked = options.document_tokens
    return {
        "qdc_version": __version__,
        "pipeline": str(plan),
        "frontend": "fx",
        "backend": str(backend),
        "checkpoint_sha256": NO_DIGEST,
        "states": options.states,
        "calibration": calibration if any(p.reads_calibration for p in plan.passes()) else None,
        "plugins": registry.plugins,
        **({} if asked == "auto" else {"document_tokens": asked}),
    }
