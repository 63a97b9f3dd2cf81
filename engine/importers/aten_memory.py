"""Which values of a captured program share memory: what an in-place op changes besides its result."""

from __future__ import annotations

import operator

import torch
from torch import fx

from tilefuse.errors import ModelError
from tilefuse.importers.aten_call import UNTILED, describe, mutates


class Memory:
    """Follows views and in-place ops through a program.

    A node's `root` is the first node that stands for the very same tensor (an in-place op returns the tensor it wrote);
    its `block` is the memory that the tensor and its views lie in.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._root = {node: node for node in graph.nodes}
        self._block = dict(self._root)

    def record(self, node: fx.Node) -> list[fx.Node]:
        """Take in the next call, and give the earlier nodes that stand for the tensor it wrote.

        Raises:
            ModelError: the call writes into memory that another value, read later, lies in.
        """
        written = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if written is None or not (mutates(node) or _may_alias(node)):
            return []
        self._block[node] = self._block[written]
        if not mutates(node):
            return []
        self._root[node] = self._root[written]
        sharing = [n for n, block in self._block.items() if block is self._block[node] and self._before(n, node)]
        for alias in sharing:
            if self._root[alias] is not self._root[node] and any(self._before(node, user) for user in alias.users):
                raise ModelError(
                    f"{describe(node)} writes into memory that {alias.name!r} shares; use the op that "
                    f"is not in place; {UNTILED}"
                )
        return [alias for alias in sharing if self._root[alias] is self._root[node]]

    def _before(self, a: fx.Node, b: fx.Node) -> bool:
        return self._order[a] < self._order[b]


def _may_alias(node: fx.Node) -> bool:
    """Tell whether a call's result may lie in its first argument's memory."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    name = node.target._opname
    # Dropout gives its input back at inference, which its schema does not say.
    return name.endswith("dropout") or any(result.alias_info is not None for result in node.target._schema.returns)
