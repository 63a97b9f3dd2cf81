"""Reduced precision that sees every 8-bit sample exactly: the image comes as 0..255, the first weights in two halves.

bfloat16 holds the integers up to 256 exactly but rounds their 255ths by up to half a level, and that rounding goes
straight into the result of a network that adds its input to its output. The layers that read the image are few and
cheap, so their weights are stored as the sum of two bfloat16 numbers, over the image repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tilefuse.graph import Graph, Node
from tilefuse.ops import Binary, Concat, Conv2d, ConvTranspose2d, Linear, Op, Pad, PixelUnshuffle, Resize
from tilefuse.passes.folding import prune

LEVELS = 255.0
_IMAGE_CHANNELS = (1, 2, 3, 4)


def exact_byte_input(graph: Graph, dtype: torch.dtype) -> Graph | None:
    """Rewrite a graph of one image in 0..1 as one that takes 255 times it, for arithmetic in `dtype`.

    Returns None where that is no gain: the only input is no image, or something else than a convolution stands between
    it and a layer. In exact arithmetic the results are the same.
    """
    if len(graph.inputs) != 1:
        return None
    image = graph.inputs[0]
    if len(image.shape) != 4 or image.shape[1] not in _IMAGE_CHANNELS:
        return None
    rewriting = _Rewriting(dtype, {image.name}, dict(graph.weights), _names(graph))
    for node in graph.nodes:
        rewriting.add(node)
    # A 255th is rounded like everything else; only behind the last layer may libraries compute in fp32.
    if _read_by_layers(rewriting.nodes) & set(rewriting.restored.values()):
        return None
    outputs = tuple(rewriting.unscaled(name) for name in graph.outputs)
    return prune(replace(graph, nodes=tuple(rewriting.nodes), outputs=outputs, weights=rewriting.weights))


@dataclass
class _Rewriting:
    """The graph as rewritten so far; `scaled` are the values that are 255 times what they were."""

    dtype: torch.dtype
    scaled: set[str]
    weights: dict[str, Tensor]
    taken: set[str]
    nodes: list[Node] = field(default_factory=list)
    restored: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Append a node, reading what it needs from scaled values."""
        source = node.inputs[0]
        if source in self.scaled and _keeps_factor(node.op):
            self.nodes.append(node)
            self.scaled.add(node.output)
        elif source in self.scaled and isinstance(node.op, Conv2d) and self._splits(node):
            self.nodes.append(self._split(node))
        else:
            self.nodes.append(replace(node, inputs=tuple(self.unscaled(name) for name in node.inputs)))

    def unscaled(self, name: str) -> str:
        """Name the value as it was, a 255th of the scaled one."""
        if name not in self.scaled:
            return name
        if name not in self.restored:
            factor, output = self._name(f"{name}.255th"), self._name(f"{name}.unit")
            self.weights[factor] = torch.tensor(1 / LEVELS)
            self.nodes.append(Node(Binary("mul"), (name, factor), output))
            self.restored[name] = output
        return self.restored[name]

    def _splits(self, node: Node) -> bool:
        return isinstance(node.op, Conv2d) and node.op.groups == 1 and node.inputs[1] in self.weights

    def _split(self, node: Node) -> Node:
        source, weight = node.inputs[0], self.weights[node.inputs[1]].double() / LEVELS
        high = weight.to(self.dtype).double()
        name = self._name(f"{node.inputs[1]}.halves")
        self.weights[name] = torch.cat((high, weight - high), 1).to(self.weights[node.inputs[1]].dtype)
        if source not in self.repeated:
            self.repeated[source] = self._name(f"{source}.twice")
            self.nodes.append(Node(Concat(1), (source, source), self.repeated[source]))
        return replace(node, inputs=(self.repeated[source], name, *node.inputs[2:]))

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name


def _keeps_factor(op: Op) -> bool:
    """Tell whether op(255 · x) = 255 · op(x)."""
    return isinstance(op, Resize | PixelUnshuffle) or (isinstance(op, Pad) and (op.mode != "constant" or op.value == 0))


def _read_by_layers(nodes: Sequence[Node]) -> set[str]:
    """Name the values that a layer with weights reads, at once or through other ops."""
    read = set[str]()
    for node in reversed(nodes):
        if isinstance(node.op, Conv2d | ConvTranspose2d | Linear) or node.output in read:
            read.update(node.inputs)
    return read


def _names(graph: Graph) -> set[str]:
    return {spec.name for spec in graph.inputs} | set(graph.weights) | {node.output for node in graph.nodes}
