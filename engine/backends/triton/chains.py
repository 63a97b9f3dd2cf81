"""Runs of layers with few channels, found in a graph and emitted as one launch each where that pays."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tilefuse.backends.triton.builder import Builder
from tilefuse.backends.triton.epilogues import Tail
from tilefuse.backends.triton.layers import epilogue_of, read_residuals
from tilefuse.backends.triton.operations import Chained
from tilefuse.backends.triton.places import Call
from tilefuse.backends.triton.prepare import members, tail_of
from tilefuse.graph import Node
from tilefuse.kernels.chain import Inner, pack_chain, scratch_elements
from tilefuse.kernels.chain_config import FEW_CHANNELS, MOST_COLUMNS, MOST_LAYERS, Link, is_inner, joins, pays
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d
from tilefuse.ops import Conv2d, ConvTranspose2d


@dataclass(frozen=True, eq=False)
class Member:
    """A layer that may be part of a run: its node, packed, with its bias and what follows it."""

    node: Node
    layer: Layer
    bias: Tensor | None
    tail: Tail

    @property
    def slopes(self) -> Tensor | None:
        """Slopes of a prelu, float32."""
        return None if self.tail.slopes is None else self.tail.slopes.float().contiguous()

    @property
    def is_inner(self) -> bool:
        """Tell whether a successor may read the result from scratch: nothing but an activation follows the layer."""
        tail = self.tail
        plain = not tail.residuals and not tail.is_clamped and not tail.is_affine and tail.shuffle == 1
        return plain and is_inner(self.layer)


def find_chains(builder: Builder) -> dict[str, tuple[Member, ...]]:
    """Give the runs that pay by the name of their last value; each is as long as pays, from its first layer on."""
    found: dict[str, tuple[Member, ...]] = {}
    waiting = {node.output for node in builder.graph.nodes if builder.defers(node)}
    taken = set[str]()
    for node in builder.graph.nodes:
        # What waits for its reader is read otherwise: enlarged, or through a prologue.
        if node.output in taken or not node.inputs or node.inputs[0] in waiting:
            continue
        run = _run(builder, node)
        while len(run) > 1 and not _pays(builder, run):
            run.pop()
        if len(run) > 1:
            found[run[-1].node.output] = tuple(run)
            taken |= {each.node.output for each in run}
    return found


def emit_chain(builder: Builder, run: tuple[Member, ...]) -> None:
    """Append the one call that makes the last value of a run."""
    *inner, last = run
    layers = [
        Inner(each.layer, each.bias, each.tail.activation, each.tail.slope, each.slopes) for each in inner
    ]  # fmt: skip
    chain = pack_chain(layers, last.layer)
    source = builder.place(inner[0].node.inputs[0])
    residuals, upsample = read_residuals(builder, last.tail)
    operation = Chained(
        chain=chain,
        epilogue=epilogue_of(last.tail),
        bias=last.bias,
        slopes=last.slopes,
        upsample=upsample,
        scales=tuple((each.scale, each.value_scale) for each in last.tail.residuals),
    )
    value = last.node.output
    made = builder.destination(value)
    scratch = builder.buffer(f"{value}.scratch", (scratch_elements(chain, made.shape),))
    builder.calls.append(Call("chain", value, (source, *residuals), (scratch, made), operation))
    builder.places.setdefault(value, made)


def _run(builder: Builder, first: Node) -> list[Member]:
    """Follow single readers from a node on, as long as they may join."""
    run, node = list[Member](), first
    while len(run) < MOST_LAYERS:
        member = _member(builder, node)
        if member is None:
            break
        run.append(member)
        if not member.is_inner or not builder.is_single(node.output):
            break
        node = builder.readers[node.output][0]
        if node.inputs[0] != run[-1].node.output:
            break
    return run


def _member(builder: Builder, node: Node) -> Member | None:
    """Pack a node's layer if a chain may hold it."""
    head, inputs, _ = members(node)
    constant = all(name in builder.graph.weights for name in inputs[1:])
    if not isinstance(head, Conv2d | ConvTranspose2d) or not constant or len(builder.shapes[inputs[0]]) != 4:
        return None
    weight = builder.weight(inputs[1])
    if head.groups > 1 or max(weight.shape[:2]) > MOST_COLUMNS or min(weight.shape[:2]) > FEW_CHANNELS:
        return None
    tail = tail_of(node, builder.graph.weights)
    if tail.shuffle > 1 and tail.order != "crd":
        return None
    if isinstance(head, ConvTranspose2d):
        layer = pack_conv_transpose2d(
            weight, stride=head.stride, padding=head.padding, output_padding=head.output_padding,
            dilation=head.dilation, groups=head.groups, shuffle=tail.shuffle,
        )  # fmt: skip
    else:
        if head.padding_mode != "constant":
            return None
        layer = pack_conv2d(
            weight, stride=head.stride, padding=head.padding, dilation=head.dilation, groups=head.groups,
            shuffle=tail.shuffle,
        )  # fmt: skip
    bias = builder.graph.weights[inputs[2]].float().flatten().contiguous() if len(inputs) > 2 else None
    return Member(node, layer, bias, tail) if joins(layer) else None


def _pays(builder: Builder, run: list[Member]) -> bool:
    links = [Link.of(each.layer, each.tail.activation, each.tail.slope) for each in run]
    return pays(links, builder.dtype)
