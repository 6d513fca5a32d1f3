"""From a model folder and a pipeline to an outlook: nothing but headers is read."""

from collections.abc import Iterable, Iterator

import torch

from qdc.frontend.coverage import Covered, coverage
from qdc.frontend.encoding import open_encoder
from qdc.ir.annotations import Orders, Salience
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.tensors import torch_dtype
from qdc.numerics.blocks import block_slices
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import Registry
from qdc.planning.configure import configure
from qdc.planning.effort import said
from qdc.planning.headers import open_headers
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import (
    LayerKind,
    Outlook,
    PassCost,
    RegionKind,
)
from qdc.planning.rates import Rates, measure
from qdc.planning.storage import shards
from qdc.planning.text import look_at_text
from qdc.planning.walk import walk
from qdc.planning.warnings import memory_warnings, shape_warnings
from qdc.runtime.device import find_device
from qdc.streaming.account import WAITING, Account
from qdc.streaming.ledger import Ledger
from qdc.streaming.memory import resident_bytes
from qdc.text.tokenizer import Encoder


def forecast(options: PlanOptions, registry: Registry) -> Outlook:
    """Work a compile out without running it.

    Args:
        options: what a compile would be asked for; the model may be a folder with a configuration
            and just the index of its shards, and the speed of the device is measured for a fraction
            of a second.
        registry: knows passes, backends and model families.

    Raises:
        QdcError: what is asked for, the checkpoint, a file of calibration text, or a pass that
            refuses the model.
    """
    configure(options, registry)  # Refuses before anything is read.
    families = registry.families
    model, device, states = options.model_dir, find_device(options.device), options.states
    calibration, fields, states_limit = options.calibration, options.fields, options.states_limit
    checkpoint, program, assumed = open_headers(model, families)
    plan, backend = configure(options, registry, longest=program.graph.model.max_length)
    assert backend is not None, "a plan is cut nowhere"
    refuse_masks(plan, program.graph)
    for step in plan.passes():
        step.check(program.graph)
    # First, for it reads a tokenizer, as a compile does: the process is as large as it will be.

    def read() -> Encoder:
        return open_encoder(model, options.document_tokens, families=families)

    uses, about_text = look_at_text(plan, program.graph.model, read, calibration, fields)
    where = torch.device(device)
    limits = {} if states_limit is None else {WAITING: states_limit}
    ledger = Ledger(shared=where.type == "cpu", limits=limits)
    base = resident_bytes()
    ledger.hold("process", "process", base)
    ledger.moment = "reading the checkpoint"
    largest = max(parameter.nbytes for parameter in checkpoint.headers.values())
    ledger.work("a tensor of the checkpoint", 2 * largest, "host")
    width = torch.empty(0, dtype=torch_dtype(states)).element_size()
    account = Account(program, ledger, held=width, returns=plan.returns())
    walk(plan, account)
    backend.check(
        {program.graph[name].path: codec for name, codec in account.codecs.items() if codec}
    )
    layout = backend.layout(program.graph)
    # A pass without a forecast may keep layers, or store them otherwise.
    known = not account.unknown and None not in account.codecs.values()
    files = shards(account, layout) if layout is not None and known else []
    samples, length = max(account.drawn.values(), default=(0, 0))
    graph = program.graph
    layers = list(graph.layers())
    forwards = sum(work.linears for work in account.work.values())
    return Outlook(
        family=graph.model.family,
        effort=said(options.effort, plan, options.settled),
        pipeline=str(plan),
        backend=str(backend),
        device=device,
        assumed=assumed,
        coverage=tuple(_fates(account)),
        regions=tuple(region_kinds(graph)),
        kinds=tuple(layer_kinds(account, layers)),
        layers=len(layers),
        weights=sum(node.rows * node.columns for node in layers),
        blocks=sum(_blocks(account, node) for node in layers),
        bytes_before=checkpoint.nbytes,
        shards=tuple(files),
        fewer=sum(fewer for fewer, _ in account.slack),
        more=sum(more for _, more in account.slack),
        host=ledger.peak("host"),
        device_memory=None if ledger.shared else ledger.peak("device"),
        process_bytes=base,
        scratch_bytes=account.scratch_bytes + ledger.on_disk,
        samples=samples,
        length=length,
        calibration_text=uses,
        forwards=forwards / max(1, samples * len(layers)),
        passes=tuple(_costs(plan, account, measure(where))),
        unknown=tuple(account.unknown),
        warnings=(
            *(field for field in (checkpoint.unused_fields,) if field),
            *shape_warnings(account, samples * length),
            *memory_warnings(ledger),
            *about_text,
        ),
    )


def region_kinds(graph: LayerGraph) -> Iterator[RegionKind]:
    """Regions in order, neighbours that are alike folded into one."""
    known: list[RegionKind] = []
    for region in graph.regions:
        stages = tuple(
            tuple(name.removeprefix(f"{region.name}.") for name in stage.layers)
            for stage in region.stages
        )
        nodes = [graph[name] for stage in region.stages for name in stage.layers]
        weights = sum(node.rows * node.columns for node in nodes)
        found = RegionKind(first=region.name, regions=1, stages=stages, weights=weights)
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
            nbytes=sum(codec.nbytes for codec in known) if whole else None,
        )


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


def _costs(plan: Plan, account: Account, rates: Rates) -> Iterator[PassCost]:
    for place, step in enumerate(plan.passes()):
        work = account.work[place]
        yield PassCost(
            name=step.name,
            products=work.products,
            exact=work.exact,
            elements=work.elements,
            seconds=rates.seconds(work),
        )
