"""From a model folder and a pipeline to an outlook: nothing but headers is read."""

from collections.abc import Iterator

import torch

from qdc.checkpoint.folder import Checkpoint
from qdc.frontend.coverage import Covered, coverage
from qdc.frontend.encoding import open_encoder
from qdc.frontend.tracer import Program
from qdc.ir.annotations import Orders, Salience
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.tensors import torch_dtype
from qdc.numerics.blocks import block_slices
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import Registry
from qdc.planning.configure import configure
from qdc.planning.effort import said
from qdc.planning.files import Files
from qdc.planning.headers import Headers
from qdc.planning.kinds import layer_kinds, region_kinds
from qdc.planning.machine import Machine
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import Outlook, PassCost
from qdc.planning.process import compile_process_bytes, with_kept
from qdc.planning.ranks import Ranks
from qdc.planning.rates import Rates
from qdc.planning.text import Looked, foreseen_states, look_at_text
from qdc.planning.walk import walk
from qdc.planning.warnings import shape_warnings
from qdc.streaming.account import WAITING, Account
from qdc.streaming.ledger import Ledger
from qdc.text.tokenizer import Encoder


def forecast(
    options: PlanOptions,
    registry: Registry,
    machine: Machine | None = None,
    *,
    text: bool = True,
    headers: Headers | None = None,
) -> Outlook:
    """Work a compile out without running it.

    Args:
        options: what a compile would be asked for; the model may be a folder with a configuration
            and just the index of its shards.
        registry: knows passes, backends and model families.
        machine: where it would run; this one if not given, whose speed is measured for a fraction
            of a second.
        text: whether the calibration text is looked at.
        headers: of the options' model, which another forecast may have opened; of this one alone if
            not given.

    Raises:
        QdcError: what is asked for, the checkpoint, a file of calibration text, or a pass that
            refuses the model.
    """
    configure(options, registry)  # Refuses before anything is read.
    machine = machine or Machine.here(options.device)
    headers = headers or Headers(options.model_dir, registry.families)
    checkpoint, program, assumed = headers.open()
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
    files = Files.of(options, registry, plan, backend, account, checkpoint, base)
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
        coverage=tuple(_fates(account, checkpoint)),
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
        host=with_kept(ledger.peak("host"), base),
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
    base = compile_process_bytes()
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


def _fates(account: Account, checkpoint: Checkpoint) -> Iterator[Covered]:
    """Every tensor with its fate, those among them that a pass will take from outside."""
    graph = account.program.graph
    taken = {node.weight.name for node in graph.vocabulary() if node.name in account.codecs}
    for row in coverage(graph, checkpoint):
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
