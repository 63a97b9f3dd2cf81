"""Folding: arithmetic on constants done once, at load time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilefuse.graph import Graph, Node
from tilefuse.ops import BatchNorm, Binary, Conv2d, ConvTranspose2d, Linear, Mean, Reshape


def prune(graph: Graph) -> Graph:
    """Remove nodes no output needs, and weights no node reads."""
    needed, kept = set(graph.outputs), list[Node]()
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    weights = {name: tensor for name, tensor in graph.weights.items() if name in needed}
    return replace(graph, nodes=tuple(reversed(kept)), weights=weights)


def fold_constants(graph: Graph) -> Graph:
    """Replace nodes that read only weights by the weight they compute."""
    weights, nodes = dict(graph.weights), list[Node]()
    with torch.no_grad():
        for node in graph.nodes:
            if node.inputs and all(name in weights for name in node.inputs):
                weights[node.output] = node.op.apply(*(weights[name] for name in node.inputs)).contiguous()
            else:
                nodes.append(node)
    return prune(replace(graph, nodes=tuple(nodes), weights=weights))


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold batch norms into the convolution or linear layer before them; others become a product and a sum.

    batch_norm(y) = s · y + (bias - s · mean) with s = weight / sqrt(variance + eps), one number a channel. The layer
    before takes it up when its weights are constants and nothing else reads its result.
    """
    ranks, weights, nodes, made = _ranks(graph), dict(graph.weights), list[Node](), set[str]()
    taken = set(ranks)
    for node in graph.nodes:
        if not isinstance(node.op, BatchNorm) or any(name not in weights for name in node.inputs[1:]):
            nodes.append(node)
            continue
        weight, bias, mean, variance = (weights[name].double() for name in node.inputs[1:])
        scale = weight / torch.sqrt(variance + node.op.eps)
        shape, like = (-1, *[1] * (ranks[node.inputs[0]] - 2)), weights[node.inputs[1]]
        product, factor, shift = (_unique(f"{node.output}.{part}", taken) for part in ("product", "scale", "shift"))
        weights[factor] = scale.to(like.dtype).view(shape)
        weights[shift] = (bias - scale * mean).to(like.dtype).view(shape)
        nodes.append(Node(Binary("mul"), (node.inputs[0], factor), product))
        nodes.append(Node(Binary("add"), (product, shift), node.output))
        made |= {product, node.output}
    return _fold_affine(prune(replace(graph, nodes=tuple(nodes), weights=weights)), made)


def fold_affine(graph: Graph) -> Graph:
    """Fold products and sums with constants, one number or one a channel, into the layer before them."""
    return _fold_affine(graph, {node.output for node in graph.nodes})


def _fold_affine(graph: Graph, eligible: set[str]) -> Graph:
    ranks, consumers, weights = _ranks(graph), graph.consumers(), dict(graph.weights)
    taken, nodes, layers = set(ranks), list[Node](), dict[str, int]()
    for node in graph.nodes:
        affine = _affine(node, weights) if node.output in eligible else None
        place = layers.get(affine.source) if affine is not None else None
        if affine is not None and place is not None and len(consumers[affine.source]) == 1:
            parameters = _fold(nodes[place], affine, weights, ranks[node.output])
            if parameters is not None and affine.source not in graph.outputs:
                nodes[place] = _store(nodes[place], node.output, parameters, weights, consumers, taken)
                layers[node.output] = place
                continue
        if isinstance(node.op, Conv2d | ConvTranspose2d | Linear):
            layers[node.output] = len(nodes)
        nodes.append(node)
    return prune(replace(graph, nodes=tuple(nodes), weights=weights))


@dataclass(frozen=True, eq=False)
class _Affine:
    """scale · source + shift, with constants."""

    source: str
    scale: Tensor
    shift: Tensor


def _affine(node: Node, weights: Mapping[str, Tensor]) -> _Affine | None:
    """Read a node as a product or a sum with a constant."""
    if not isinstance(node.op, Binary) or (node.inputs[0] in weights) == (node.inputs[1] in weights):
        return None
    first = node.inputs[0] in weights
    constant, source = (weights[node.inputs[0 if first else 1]].double(), node.inputs[1 if first else 0])
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    match node.op.kind:
        case "add":
            return _Affine(source, one, constant)
        case "sub":
            return _Affine(source, -one, constant) if first else _Affine(source, one, -constant)
        case "mul":
            return _Affine(source, constant, zero)
        case "div" if not first and constant.all():
            return _Affine(source, 1 / constant, zero)
    return None


def _fold(layer: Node, affine: _Affine, weights: Mapping[str, Tensor], rank: int) -> tuple[Tensor, Tensor] | None:
    """Compute the weight and bias of a layer that includes what follows it, or None where it can't."""
    if any(name not in weights for name in layer.inputs[1:]):
        return None
    weight = weights[layer.inputs[1]].double()
    bias = weights[layer.inputs[2]].double() if len(layer.inputs) > 2 else torch.zeros((), dtype=weight.dtype)
    match layer.op:
        case Conv2d():
            channels = weight.shape[0]
        case ConvTranspose2d(groups=groups):
            channels = weight.shape[1] * groups
        case Linear(transpose_weight=transposed):
            channels = weight.shape[0 if transposed else 1]
            if rank != 2:
                return None
    trailing = (1,) * (rank - 2)
    if tuple(affine.scale.shape) not in ((), (channels, *trailing), (1, channels, *trailing)):
        return None
    if bias.numel() not in (1, channels) or (bias.ndim > 1 and bias.shape[-1] != bias.numel()):
        return None
    scale, shift = (part.flatten().expand(channels) for part in (affine.scale, affine.shift))
    bias = bias.flatten().expand(channels)
    match layer.op:
        case Conv2d():
            return weight * scale.view(-1, 1, 1, 1), bias * scale + shift
        case ConvTranspose2d(groups=groups):
            grouped = weight.view(groups, -1, *weight.shape[1:]) * scale.view(groups, 1, -1, 1, 1)
            return grouped.view(weight.shape), bias * scale + shift
        case Linear(alpha, beta, transpose_weight=transposed):
            scaled = alpha * weight * (scale.view(-1, 1) if transposed else scale)
            return scaled, beta * bias * scale + shift
    return None


def _store(
    layer: Node,
    output: str,
    parameters: tuple[Tensor, Tensor],
    weights: dict[str, Tensor],
    consumers: Mapping[str, list[Node]],
    taken: set[str],
) -> Node:
    """Write a layer's new weight and bias, under their names where no other node reads them."""
    old = layer.inputs[1]
    dtype = weights[old].dtype
    names = (
        [*layer.inputs[1:]] if len(layer.inputs) > 2 else [old, _unique(f"{old.removesuffix('.weight')}.bias", taken)]
    )
    for position, (name, tensor) in enumerate(zip(names, parameters, strict=True)):
        if len(consumers.get(name, ())) > 1:
            names[position] = _unique(name, taken)
        weights[names[position]] = tensor.to(dtype).contiguous()
    op = replace(layer.op, alpha=1.0, beta=1.0) if isinstance(layer.op, Linear) else layer.op
    return Node(op, (layer.inputs[0], *names), output)


def _unique(name: str, taken: set[str]) -> str:
    chosen, count = name, 1
    while chosen in taken:
        chosen, count = f"{name}_{count}", count + 1
    taken.add(chosen)
    return chosen


def _ranks(graph: Graph) -> dict[str, int]:
    """Number of dimensions of every value."""
    ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
    ranks |= {name: tensor.ndim for name, tensor in graph.weights.items()}
    for node in graph.nodes:
        rank = ranks[node.inputs[0]]
        match node.op:
            case Reshape(shape=shape):
                rank = len(shape)
            case Mean(dims=dims, keepdim=False):
                rank -= len(dims)
            case Binary():
                rank = max(ranks[name] for name in node.inputs)
        ranks[node.output] = rank
    return ranks
