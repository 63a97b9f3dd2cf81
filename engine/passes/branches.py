"""Reduced precision where rounding is absorbed: in the branches that residual networks add to their trunk.

A branch's values are corrections to the value it is added to, so the rounding of its layers reaches the result many
times smaller than that of the layers before and behind. These stay in float32, as the trunk does. With all layers
rounded to bfloat16, the ESRGAN and EDSR of this package differ from float32 by 3.1 and 1.9 levels of 8 bits on a
drawn picture, with those of their branches by 0.7 and 0.2 (in torch; up to 2.0 and 0.4 in photographs and print in
OpenVINO). Which layers may be rounded is otherwise found by hand, as in automatic mixed
precision (Micikevicius et al., "Mixed Precision Training", ICLR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tilefuse.cost import node_flops
from tilefuse.graph import Graph, Input, Node, Shape
from tilefuse.ops import Activation, Binary, Cast, Concat, Conv2d, Pad, PixelUnshuffle, PRelu, Resize
from tilefuse.passes.folding import prune

# Branches that hold less of the network's products leave too little to gain.
_LEAST_SHARE = 0.5
# The size that shares are counted at divides by every factor that networks enlarge or reduce by.
_NOMINAL_PX = 6720


def reduce_branches(graph: Graph, dtype: torch.dtype) -> Graph | None:
    """Compute the convolutions of residual branches in `dtype`, all else in float32.

    Returns None where that is no gain: there are no such branches, they are a small part of the network, or the
    network as a whole is a correction of the image, which it adds.
    """
    inside = _in_branches(graph)
    if not inside or _adds_image(graph):
        return None
    # At one size, whatever the window: two windows of an image must not differ in what is rounded.
    shapes = graph.shapes(*(_sized(spec) for spec in graph.inputs))
    work = {node.output: node_flops(node, shapes) for node in graph.nodes if isinstance(node.op, Conv2d)}
    if sum(work.get(name, 0) for name in inside) < _LEAST_SHARE * sum(work.values()) or inside >= work.keys():
        return None
    available = {spec.name for spec in graph.inputs} | set(graph.weights)
    rewriting = _Rewriting(dtype, inside, dict(graph.weights), available)
    for node in graph.nodes:
        rewriting.add(node)
    for name in graph.outputs:
        rewriting.restored(name)
    return prune(replace(graph, nodes=tuple(rewriting.nodes), weights=rewriting.weights))


def _sized(spec: Input) -> Shape:
    return tuple(size or (_NOMINAL_PX if axis > 1 else 1) for axis, size in enumerate(spec.shape))


@dataclass
class _Rewriting:
    """The graph as rewritten so far: the values that exist in float32, and those that exist in `dtype`."""

    dtype: torch.dtype
    inside: set[str]
    weights: dict[str, Tensor]
    full: set[str]
    reduced: set[str] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Append a node in the one type or the other."""
        # What only moves or bends a layer's result takes it as it comes.
        follows = isinstance(node.op, Activation | PRelu | Concat) and not self.full.issuperset(node.inputs)
        if node.output in self.inside and (_convolves(node) or follows):
            inputs = tuple(self.rounded(name) for name in node.inputs)
            self.nodes.append(replace(node, inputs=inputs, output=self._short(node.output)))
            self.reduced.add(node.output)
        else:
            self.nodes.append(replace(node, inputs=tuple(self.restored(name) for name in node.inputs)))
            self.full.add(node.output)

    def restored(self, name: str) -> str:
        """Name a value in float32, casting it once."""
        if name not in self.full:
            self.nodes.append(Node(Cast(torch.float32), (self._short(name),), name))
            self.full.add(name)
        return name

    def rounded(self, name: str) -> str:
        """Name a value in `dtype`, casting it once."""
        short = self._short(name)
        if name not in self.reduced:
            if name in self.weights:
                self.weights[short] = self.weights[name].to(self.dtype)
            else:
                self.nodes.append(Node(Cast(self.dtype), (name,), short))
            self.reduced.add(name)
        return short

    def _short(self, name: str) -> str:
        return f"{name}.{str(self.dtype).removeprefix('torch.')}"


def _convolves(node: Node) -> bool:
    return isinstance(node.op, Conv2d) and node.op.padding_mode == "constant" and min(node.op.padding) >= 0


def _in_branches(graph: Graph) -> set[str]:
    """Name the values between a skip connection's start and its sum, where no other sum of that kind lies between."""
    # Sets of nodes as the bits of a number: those a value is made of, with itself; inputs count as nodes.
    made_of = {spec.name: 1 << (len(graph.nodes) + place) for place, spec in enumerate(graph.inputs)}
    own = dict(made_of)
    read_by = dict.fromkeys(made_of, 0)
    for place, node in enumerate(graph.nodes):
        own[node.output] = made_of[node.output] = 1 << place
        read_by[node.output] = 0
        for name in node.inputs:
            made_of[node.output] |= made_of.get(name, 0)
            read_by[name] = read_by.get(name, 0) | 1 << place
    found = dict[int, int]()
    for place, node in enumerate(graph.nodes):
        if not (isinstance(node.op, Binary) and node.op.kind == "add"):
            continue
        for skip, end in (node.inputs, node.inputs[::-1]):
            if own.get(skip, 0) & made_of.get(end, 0) and skip != end:
                branch = made_of[end] & ~made_of[skip]
                inside = [other for at, other in enumerate(graph.nodes) if branch >> at & 1]
                # What leaves a branch by another way than the sum is no correction there.
                escapes = any(read_by[n.output] & ~(branch | 1 << place) or n.output in graph.outputs for n in inside)
                if not escapes:
                    found[place] = branch
    sums = sum(1 << place for place in found)
    innermost = [branch for branch in found.values() if not branch & sums]
    return {node.output for at, node in enumerate(graph.nodes) if any(branch >> at & 1 for branch in innermost)}


def _adds_image(graph: Graph) -> bool:
    """Tell whether the image itself, at most resized, is added somewhere: then all the rest is one branch."""
    images = {spec.name for spec in graph.inputs}
    for node in graph.nodes:
        if not images.intersection(node.inputs):
            continue
        if isinstance(node.op, Resize | Pad | PixelUnshuffle):
            images.add(node.output)
        elif isinstance(node.op, Binary):
            if all(name in images or name in graph.weights for name in node.inputs):
                images.add(node.output)
            elif node.op.kind == "add":
                return True
    return False
