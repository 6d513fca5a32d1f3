"""From a model folder and a pipeline to an outlook: nothing but headers is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from qdc.checkpoint.folder import Checkpoint
from qdc.format.codec import Codec
from qdc.frontend.coverage import Covered, coverage
from qdc.frontend.encoding import open_encoder
from qdc.frontend.tracer import Program
from qdc.ir.activations import InputCodes
from qdc.ir.annotations import Orders, Salience
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.tensors import torch_dtype
from qdc.numerics.blocks import block_slices
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.builder import build_backend
from qdc.pipeline.foreseen import Foreseen
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import Registry
from qdc.planning.companions import companions, note_lowered
from qdc.planning.configure import configure
from qdc.planning.effort import said
from qdc.planning.headers import open_headers
from qdc.planning.machine import Machine
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import (
    BesideSize,
    LayerKind,
    Outlook,
    PassCost,
    RegionKind,
    RuntimeMemory,
    ShardSize,
)
from qdc.planning.ranks import Ranks
from qdc.planning.rates import Rates
from qdc.planning.running import TOKENS, runtimes
from qdc.planning.storage import shards, stored
from qdc.planning.text import Looked, foreseen_states, look_at_text
from qdc.planning.walk import walk
from qdc.planning.warnings import shape_warnings
from qdc.streaming.account import WAITING, Account
from qdc.streaming.forecast import NO_DIGEST
from qdc.streaming.ledger import Ledger
from qdc.streaming.memory import resident_bytes
from qdc.text.source import EMBEDDED
from qdc.text.tokenizer import Encoder
from qdc.version import __version__


def forecast(
    options: PlanOptions, registry: Registry, machine: Machine | None = None, *, text: bool = True
) -> Outlook:
    """Work a compile out without running it.

    Args:
        options: what a compile would be asked for; the model may be a folder with a configuration
            and just the index of its shards.
        registry: knows passes, backends and model families.
        machine: where it would run; this one if not given, whose speed is measured for a fraction
            of a second.
        text: whether the calibration text is looked at.

    Raises:
        QdcError: what is asked for, the checkpoint, a file of calibration text, or a pass that
            refuses the model.
    """
    configure(options, registry)  # Refuses before anything is read.
    machine = machine or Machine.here(options.device)
    checkpoint, program, assumed = open_headers(options.model_dir, registry.families)
    graph = program.graph
    plan, backend = configure(options, registry, model=graph.model, longest=graph.model.max_length)
    assert backend is not None, "a plan is cut nowhere"
    refuse_masks(plan, graph)
    for step in plan.passes():
        step.check(graph)
    # First, for it reads a tokenizer, as a compile does: the process is as large as it will be.
    uses, about_text = _text(options, registry, plan, graph) if text else ((), ())
    account, base = _walked(options, machine, checkpoint, program, plan)
    ledger = account.ledger
    backend.check({graph[name].path: codec for name, codec in account.codecs.items() if codec})
    files = _Files.of(options, registry, plan, backend, account, checkpoint, base)
    samples, length = max(account.drawn.values(), default=(0, 0))
    layers = list(graph.layers())
    ranks = Ranks(machine.ranks, plan, account)
    sent, sending = ranks.sent()
    forwards = sum(work.linears for work in account.work.values())
    return Outlook(
        family=graph.model.family,
        effort=said(options.effort, plan, options.settled),
        pipeline=str(plan),
        backend=str(backend),
        device=machine.device,
        assumed="\n".join(filter(None, (assumed, checkpoint.assumed_fields))),
        coverage=tuple(_fates(account)),
        regions=tuple(region_kinds(graph)),
        kinds=tuple(layer_kinds(account, layers)),
        layers=len(layers),
        weights=sum(node.rows * node.columns for node in layers),
        blocks=sum(_blocks(account, node) for node in layers),
        bytes_before=checkpoint.nbytes,
        shards=files.shards,
        beside=files.beside,
        uncounted=files.uncounted,
        fewer=sum(fewer for fewer, _ in account.slack),
        more=sum(more for _, more in account.slack),
        host=ledger.peak("host"),
        device_memory=None if ledger.shared else ledger.peak("device"),
        process_bytes=base,
        scratch_bytes=account.scratch_bytes + ledger.on_disk + files.for_a_while,
        samples=samples,
        length=length,
        calibration_text=uses,
        calibration_states=foreseen_states(plan, graph.model),
        forwards=forwards / max(1, samples * len(layers)),
        passes=tuple(_costs(ranks, machine.rates)),
        ranks=machine.ranks,
        sent_bytes=sent,
        sent_seconds=sending,
        unknown=tuple(account.unknown),
        warnings=(
            *(field for field in (checkpoint.unused_fields,) if field),
            *shape_warnings(account, samples * length),
            *about_text,
        ),
        tokens=files.tokens,
        running=files.running,
        machine=machine.title,
        measured=machine.measured,
    )


def _text(options: PlanOptions, registry: Registry, plan: Plan, graph: LayerGraph) -> Looked:
    """What samples will be made of. Raises ``QdcError`` for a file that cannot be read."""

    def read() -> Encoder:
        return open_encoder(options.model_dir, options.document_tokens, families=registry.families)

    return look_at_text(plan, graph.model, read, options.calibration, options.fields)


def _walked(
    options: PlanOptions, machine: Machine, checkpoint: Checkpoint, program: Program, plan: Plan
) -> tuple[Account, int]:
    """All that the passes foretell, and the bytes of the process that they come to."""
    ledger = Ledger(shared=machine.shared, limits={WAITING: options.states_limit})
    base = resident_bytes()
    ledger.hold("process", "process", base)
    ledger.moment = "reading the checkpoint"
    largest = max(parameter.nbytes for parameter in checkpoint.headers.values())
    ledger.work("a tensor of the checkpoint", 2 * largest, "host")
    width = torch.empty(0, dtype=torch_dtype(options.states)).element_size()
    own = None if machine.shared else machine.device_memory
    memory = options.statistics_limit(own)
    account = Account(
        program, ledger, held=width, returns=plan.returns(), memory=memory, ranks=machine.ranks
    )
    walk(plan, account)
    return account, base


@dataclass(frozen=True)
class _Files:
    """What will lie on the disk."""

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
    ) -> "_Files":
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


def region_kinds(graph: LayerGraph) -> Iterator[RegionKind]:
    """Regions in order, neighbours that are alike folded into one."""
    known: list[RegionKind] = []
    for region in graph.regions:
        stages = tuple(
            tuple(name.removeprefix(f"{region.name}.") for name in stage.layers)
            for stage in graph.waves[region.name].each()
        )
        nodes = [graph[name] for stage in region.stages for name in stage.layers]
        weights = sum(node.rows * node.columns for node in nodes)
        waves = tuple(len(wave) for wave in graph.waves[region.name].stages)
        found = RegionKind(
            first=region.name, regions=1, stages=stages, waves=waves, weights=weights
        )
        if known and (known[-1].stages, known[-1].weights) == (stages, weights):
            known[-1] = known[-1].model_copy(update={"regions": known[-1].regions + 1})
        else:
            known.append(found)
    yield from known


def layer_kinds(account: Account, layers: Iterable[Node]) -> Iterator[LayerKind]:
    """Layers of one place and shape together, with the vocabulary's matrices behind them."""
    graph, groups = account.program.graph, dict[tuple[str, int, int], list[Node]]()
    lowered = (node for node in graph.vocabulary() if node.name in account.codecs)
    for node in (*layers, *lowered):
        groups.setdefault((node.kind, node.rows, node.columns), []).append(node)
    for (kind, rows, columns), nodes in groups.items():
        codecs = [account.codecs.get(node.name) for node in nodes]
        known = [codec for codec in codecs if codec is not None]
        whole = len(known) == len(nodes) and not account.unknown
        yield LayerKind(
            kind=kind,
            layers=len(nodes),
            rows=rows,
            columns=columns,
            codec=known[0].name if whole else None,
            nbytes=_layers_bytes(graph, nodes, known) if whole else None,
        )


def _layers_bytes(graph: LayerGraph, nodes: Iterable[Node], codecs: Iterable[Codec]) -> int:
    """Stored bytes of layers: what their codecs hold, and static scales of what they read."""
    notes = (graph.get(node.name, InputCodes) for node in nodes)
    static = sum(note.nbytes for note in notes if note is not None)
    return static + sum(codec.nbytes for codec in codecs)


def _fates(account: Account) -> Iterator[Covered]:
    """Every tensor with its fate, those among them that a pass will take from outside."""
    graph = account.program.graph
    taken = {node.weight.name for node in graph.vocabulary() if node.name in account.codecs}
    for row in coverage(graph):
        changed = {"status": "quantized", "reason": "the vocabulary"}
        yield row.model_copy(update=changed) if row.tensor in taken else row


def _blocks(account: Account, node: Node) -> int:
    orders, salience = (account.program.graph.get(node.name, kind) for kind in (Orders, Salience))
    if isinstance(orders, Orders):
        return len(orders.widths)
    return len(salience.widths if isinstance(salience, Salience) else block_slices(node.columns))


def _costs(ranks: Ranks, rates: Rates) -> Iterator[PassCost]:
    for place, step in enumerate(ranks.plan.passes()):
        work, gain = ranks.account.work[place], ranks.gain(step)
        yield PassCost(
            name=step.name,
            products=work.products,
            exact=work.exact,
            elements=work.elements,
            gain=gain,
            seconds=rates.seconds(work) / gain,
        )
