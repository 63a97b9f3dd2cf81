"""Lowering: a graph at fixed shapes becomes a flat list of calls with places in one arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tilefuse.backends.triton import chains, layers, moves, pointwise
from tilefuse.backends.triton.arena import Lifetime, lay_out
from tilefuse.backends.triton.builder import Builder
from tilefuse.backends.triton.operations import NormalisePixels, TorchOperation
from tilefuse.backends.triton.pixels import fuse_pixels
from tilefuse.backends.triton.places import Call, Place, Program, constant_bytes
from tilefuse.backends.triton.prepare import pixel_norms, prepare
from tilefuse.graph import Graph, Node, Shape
from tilefuse.kernels.pixel_norm import MOST_CHANNELS
from tilefuse.ops import (
    AdaptivePool2d,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Fused,
    GroupNorm,
    Linear,
    Mean,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    Reshape,
    Resize,
    Slice,
)


def lower(graph: Graph, shapes: Sequence[Shape], dtype: torch.dtype, *, pixels: torch.dtype | None = None) -> Program:
    """Lower a graph for inputs of the given shapes, computed in `dtype`. Nothing runs, and no device is needed.

    Args:
        pixels: uint8 or uint16, which the graph's one image in and one image out may be, as far as its own kernels
            convert them; the places of the program's input and output say whether they do.

    Raises:
        ModelError: the graph can't take the shapes.
    """
    prepared = prepare(graph)
    builder = Builder(prepared, shapes, dtype, emit)
    norms = pixel_norms(prepared)
    inner = {name for norm in norms.values() for name in norm.inner}
    found = chains.find_chains(builder)
    chained = {member.node.output for run in found.values() for member in run}
    for node in prepared.nodes:
        if node.output in found:
            chains.emit_chain(builder, found[node.output])
        if node.output in inner or node.output in chained:
            continue
        if node.output in norms and len(builder.shapes[node.output]) == 4:
            source = norms[node.output].source
            if builder.shapes[source][1] <= MOST_CHANNELS and len(builder.shapes[source]) == 4:
                operation = NormalisePixels(norms[node.output].eps)
                builder.call("pixel_norm", node.output, (builder.place(source),), operation)
                continue
        if builder.defers(node):
            builder.pending[node.output] = node
        else:
            emit(builder, node)
    outputs = tuple(builder.place(name) for name in prepared.outputs)
    inputs = tuple(builder.place(spec.name) for spec in prepared.inputs)
    output_shapes, flag = tuple(builder.shapes[name] for name in prepared.outputs), None
    if pixels is not None and len(inputs) == len(outputs) == 1:
        mark = builder.buffer("flag", (1,), torch.int32)
        fused = fuse_pixels(builder.calls, inputs[0], outputs[0], pixels, mark)
        builder.calls, flag = list(fused.calls), fused.flag
        inputs, outputs = (fused.source,), (fused.result,)
        for place in (*inputs, *outputs):
            builder.buffers[place.buffer] = replace(builder.buffers[place.buffer], dtype=place.dtype)
    return _program(builder, inputs, outputs, output_shapes, flag)


def emit(builder: Builder, node: Node) -> None:
    """Append the calls that make a node's value."""
    head = node.op.members[0] if isinstance(node.op, Fused) else node.op
    rank = len(builder.shapes[node.output])
    done = False
    match head:
        case Conv2d() | ConvTranspose2d():
            done = layers.emit_convolution(builder, node)
        case Linear():
            done = layers.emit_linear(builder, node)
        case PixelShuffle() | PixelUnshuffle() | Pad() | Pool2d() | AdaptivePool2d() | Resize() if rank == 4:
            done = moves.emit_move(builder, node)
        case Concat():
            done = moves.emit_concat(builder, node)
        case Slice():
            done = moves.emit_slice(builder, node)
        case Reshape():
            done = moves.emit_reshape(builder, node)
        case Mean(dims=dims):
            done = moves.emit_mean(builder, node, dims)
        case GroupNorm():
            done = pointwise.emit_chain(builder, node)
        case _ if pointwise.is_pointwise(node.op):
            done = pointwise.emit_chain(builder, node)
    if not done:
        _emit_torch(builder, node)


def _emit_torch(builder: Builder, node: Node) -> None:
    """Run an op by torch, in the same plan."""
    reads, sources, ranks = list[Place](), list[object](), list[int]()
    for name in node.inputs:
        if name in builder.graph.weights:
            sources.append(builder.weight(name))
        else:
            sources.append(len(reads))
            reads.append(builder.place(name))
            ranks.append(len(builder.shapes[name]))
    rank = len(builder.shapes[node.output])
    operation = TorchOperation(node.op, tuple(sources), tuple(ranks), rank)  # type: ignore[arg-type]
    builder.call(f"torch.{node.op.name}", node.output, tuple(reads), operation)


def _program(
    builder: Builder,
    inputs: tuple[Place, ...],
    outputs: tuple[Place, ...],
    output_shapes: tuple[Shape, ...],
    flag: Place | None,
) -> Program:
    calls: tuple[Call, ...] = tuple(builder.calls)
    used: dict[str, tuple[int, int]] = {place.buffer: (-1, -1) for place in inputs}
    for position, call in enumerate(calls):
        for place in (*call.reads, *call.writes):
            first, _ = used.get(place.buffer, (position, position))
            used[place.buffer] = (first, position)
    for place in outputs:
        first, _ = used[place.buffer]
        used[place.buffer] = (first, len(calls))
    if flag is not None:
        # Cleared before the first call, read after the last.
        used[flag.buffer] = (-1, len(calls))
    lifetimes = [Lifetime(name, builder.buffers[name].bytes, *span) for name, span in used.items()]
    offsets, size = lay_out(lifetimes)
    held = sum(constant_bytes(call.operation) for call in calls)
    buffers = {name: builder.buffers[name] for name in used}
    return Program(inputs, outputs, output_shapes, calls, buffers, offsets, size, held, flag)
