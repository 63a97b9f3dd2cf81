"""Pointwise chains and norms: as many nodes as one launch takes."""

from __future__ import annotations

import torch
from torch import Tensor

from tilefuse.backends.triton.builder import POINTWISE, Builder, broadcastable
from tilefuse.backends.triton.operations import Pointwise, Statistics
from tilefuse.backends.triton.places import Call, Place
from tilefuse.graph import Node
from tilefuse.kernels.elementwise import MOST_INPUTS, Step
from tilefuse.kernels.norm import scratch_shape
from tilefuse.ops import Activation, Binary, Clamp, GroupNorm, Op, PRelu, Unary

# Longer chains hold too many values in registers.
MOST_STEPS = 24


class Chain:
    """Instructions over inputs; inputs are -1, -2, … until their number is known, and a step's result is its place."""

    def __init__(self) -> None:
        self.inputs: list[Place | Tensor] = []
        self.steps: list[Step] = []

    def read(self, source: Place | Tensor) -> int:
        """Number an input."""
        for position, known in enumerate(self.inputs):
            if known is source or (isinstance(source, Place) and known == source):
                return -1 - position
        self.inputs.append(source)
        return -len(self.inputs)

    def step(self, op: str, a: int = -1, b: int | None = None, number: float = 0.0) -> int:
        """Append an instruction and number its result."""
        self.steps.append(Step(op, a, a if b is None else b, number))
        return len(self.steps) - 1

    def operation(self) -> tuple[Pointwise, tuple[Place, ...]]:
        """Give the operation, and the places it reads."""
        count, reads = len(self.inputs), list[Place]()
        sources: list[int | Tensor] = []
        for source in self.inputs:
            if isinstance(source, Place):
                sources.append(len(reads))
                reads.append(source)
            else:
                sources.append(source)

        def numbered(value: int) -> int:
            return -1 - value if value < 0 else count + value

        steps = tuple(Step(step.op, numbered(step.a), numbered(step.b), step.number) for step in self.steps)
        return Pointwise(tuple(sources), steps), tuple(reads)


def is_pointwise(op: Op) -> bool:
    """Tell whether an op treats every element alone."""
    return isinstance(op, POINTWISE)


def emit_chain(builder: Builder, node: Node) -> bool:
    """Emit a pointwise node, or a norm, with the nodes that wait for it; False where shapes or ranks don't fit."""
    rank = len(builder.shapes[node.output])
    if rank not in (2, 4) or not _fits(builder, node, rank):
        return False
    chain = Chain()
    last = _append(builder, chain, node, rank)
    if last < 0:
        return False
    operation, reads = chain.operation()
    if not reads:
        return False
    builder.call("elementwise", node.output, reads, operation)
    return True


def emit_statistics(builder: Builder, node: Node, op: GroupNorm, source: Place) -> tuple[Place, Place, Place]:
    """Emit a norm's statistics, and return the places of mean, scale and shift, float32 [N, 1, 1, C]."""
    n, h, w, c = source.shape
    weight, bias = (builder.graph.weights[name].float().contiguous() for name in node.inputs[1:])
    scratch = builder.buffer(f"{node.output}.chunks", scratch_shape(n, h, w, c), torch.float32)
    found = builder.buffer(f"{node.output}.statistics", (3, n, 1, 1, c), torch.float32)
    operation = Statistics(op.groups, weight, bias, op.eps)
    builder.calls.append(Call("norm_statistics", node.output, (source,), (scratch, found), operation))
    parts = [found.narrowed(0, part, 1).viewed((n, 1, 1, c), (c, c, c, 1)) for part in range(3)]
    return parts[0], parts[1], parts[2]


def _fits(builder: Builder, node: Node, rank: int) -> bool:
    if isinstance(node.op, GroupNorm):
        return rank == 4 and all(name in builder.graph.weights for name in node.inputs[1:])
    return all(
        builder.graph.weights[name].ndim <= rank if name in builder.graph.weights else len(builder.shapes[name]) == rank
        for name in node.inputs
    )


def _append(builder: Builder, chain: Chain, node: Node, rank: int) -> int:
    """Append a node's steps, after those of the nodes that wait for it, and number its value."""
    op = node.op
    if isinstance(op, GroupNorm):
        source = builder.place(node.inputs[0])
        mean, scale, _ = emit_statistics(builder, node, op, source)
        bias = builder.graph.weights[node.inputs[2]].float().view(1, 1, 1, -1)
        centred = chain.step("sub", chain.read(source), chain.read(mean))
        scaled = chain.step("mul", centred, chain.read(scale))
        return chain.step("add", scaled, chain.read(bias))
    values = [_operand(builder, chain, name, rank) for name in node.inputs]
    match op:
        case Activation(kind=kind, slope=slope):
            return chain.step(kind, values[0], number=slope)
        case Unary(kind=unary):
            return chain.step(unary, values[0])
        case Clamp(low=low, high=high):
            value = values[0] if low is None else chain.step("clamp_low", values[0], number=low)
            value = value if high is None else chain.step("clamp_high", value, number=high)
            # A chain ends in a step: limits that are open on both sides are a product with one.
            return value if value >= 0 else chain.step("mul", value, chain.step("constant", value, number=1.0))
        case PRelu():
            return chain.step("prelu", values[0], values[1])
        case Binary(kind=binary):
            return chain.step(binary, values[0], values[1])
    return -1


def _operand(builder: Builder, chain: Chain, name: str, rank: int) -> int:
    """Number the value of a name: a constant, an input, or the steps of a node that waited."""
    if name in builder.graph.weights:
        weight = builder.graph.weights[name]
        if weight.numel() == 1:
            return chain.step("constant", -1, number=float(weight))
        return chain.read(broadcastable(weight.float(), rank))
    node = builder.pending.get(name)
    room = len(chain.inputs) + 4 <= MOST_INPUTS and len(chain.steps) + 4 <= MOST_STEPS
    joins = node is not None and isinstance(node.op, (*POINTWISE, GroupNorm)) and _fits(builder, node, rank)
    if node is not None and joins and room:
        del builder.pending[name]
        return _append(builder, chain, node, rank)
    return chain.read(builder.place(name))
