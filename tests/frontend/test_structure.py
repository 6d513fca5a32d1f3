from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qdc.errors import UnsupportedModel
from qdc.frontend.coverage import mark_kept
from qdc.ir.graph import LayerGraph
from qdc.ir.verify import verify
from tests.frontend.toys import WIDTH, Block, Other, Toy, linear, traced


def stages(graph: LayerGraph) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    return {
        region.name: [(stage.value, stage.layers) for stage in region.stages]
        for region in graph.regions
    }


def test_structure_is_found_whatever_the_names() -> None:
    graph = traced(Toy).graph
    assert stages(graph) == {
        f"junk.{i}": [
            (f"junk.{i}.blocks", (f"junk.{i}.lm_head", f"junk.{i}.wte")),
            (f"junk.{i}.mul", (f"junk.{i}.q_proj",)),
        ]
        for i in range(2)
    }
    verify(graph)


def test_what_is_outside_the_blocks_is_kept_whatever_its_name() -> None:
    graph = traced(Toy).graph
    mark_kept(graph)
    quantized = [node.name.split(".")[-1] for node in graph.layers()]
    assert quantized == ["lm_head", "wte", "q_proj"] * 2
    assert [p.role for p in graph["attn_out"].parameters] == ["weight", "bias"]


class Experts(nn.Module):
    """A block that holds a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([Block(), Other()])
        self.out = linear()

    def forward(self, hidden: Tensor) -> Tensor:
        for member in self.inner:
            hidden = member(hidden)
        added: Tensor = self.out(hidden)
        return hidden + added


def test_the_outermost_list_counts() -> None:
    graph = traced(lambda: Toy([Experts(), Experts()])).graph
    assert [region.name for region in graph.regions] == ["junk.0", "junk.1"]
    assert [len(region.stages) for region in graph.regions] == [5, 5]
    verify(graph)


class Backwards(Toy):
    """The list is executed from its end."""

    def stream(self, hidden: Tensor) -> Tensor:
        return self.junk[0](self.junk[1](hidden))  # type: ignore[no-any-return]


def test_regions_are_in_execution_order() -> None:
    graph = traced(Backwards).graph
    assert [region.name for region in graph.regions] == ["junk.1", "junk.0"]
    verify(graph)


class Encoder(Toy):
    """Two lists, one after the other, and a list without linears."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.Identity(), nn.Embedding(3, 3)])
        self.early = nn.ModuleList([Other(), Other(), Other()])

    def stream(self, hidden: Tensor) -> Tensor:
        for member in self.early:
            hidden = member(hidden)
        return super().stream(hidden)


def test_two_lists_give_regions_each() -> None:
    names = [region.name for region in traced(Encoder).graph.regions]
    assert names == ["early.0", "early.1", "early.2", "junk.0", "junk.1"]


class Nothing(Toy):
    """A model whose blocks are attributes, not a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        del self.junk

    def stream(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(hidden))
        return out


class Unused(Toy):
    """A list that is never executed."""

    def stream(self, hidden: Tensor) -> Tensor:
        return hidden


class Pair(nn.Module):
    """A block with two results."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(one), self.b(two)


class Pairs(Toy):
    """A model whose blocks carry two streams side by side."""

    def __init__(self) -> None:
        super().__init__([Pair(), Pair()])

    def stream(self, hidden: Tensor) -> Tensor:
        one = two = hidden
        for member in self.junk:
            one, two = member(one, two)
        return one + two


class Twice(Toy):
    """The whole list runs two times."""

    def stream(self, hidden: Tensor) -> Tensor:
        return super().stream(super().stream(hidden))


class Repeated(Toy):
    """Each block runs two times in a row."""

    def stream(self, hidden: Tensor) -> Tensor:
        for member in self.junk:
            hidden = member(member(hidden))
        return hidden


class TwoResults(Toy):
    """A model that does not just return logits."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.stream(self.ff_out(input_ids))
        return self.attn_out(hidden), hidden  # type: ignore[return-value]


class Numbers(Toy):
    """A value between the layers that is no tensor."""

    def stream(self, hidden: Tensor) -> Tensor:
        return super().stream(torch.split(hidden, WIDTH, dim=-1)[0])


@pytest.mark.parametrize(
    ("make", "text", "where"),
    [
        (lambda: Toy([Block(), Other()]), "not alike: Block, Other", "junk"),
        (Nothing, "no module list of repeated blocks", ""),
        (Unused, "no module list of repeated blocks", ""),
        (Pairs, "a block hands 2 values on, not one residual stream", "%junk.0.a"),
        (Twice, "a block is not executed in one piece", "%junk.0"),
        (Repeated, "one weight is used by more than one linear", "%junk.0.lm_head"),
        (TwoResults, "does not return one tensor", ""),
        (Numbers, "a value between the layers is no tensor", "split"),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_unsupported_structures_are_refused(
    make: Callable[[], nn.Module], text: str, where: str
) -> None:
    with pytest.raises(UnsupportedModel, match=text) as caught:
        traced(make)
    assert where in " ".join(caught.value.where)
