"""torch.export's programs to a graph: two captures of one module, at two image sizes, read side by side.

Static captures at two sizes say what a symbolic one says (which sizes follow the image, and how) without the failures
of symbolic shapes: a size rounded by Python arithmetic, a guard that fixes a dimension, a batch of 1.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg

from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input
from tilefuse.importers.aten_call import (
    UNTILED,
    Builder,
    Call,
    Constant,
    SizeDependentError,
    Value,
    describe,
    module_path,
    mutates,
    target_name,
)
from tilefuse.importers.aten_memory import Memory
from tilefuse.importers.aten_ops import CONVERTERS


def convert(program: ExportedProgram, other: ExportedProgram) -> Graph:
    """Convert a module exported at two sizes: what differs between the captures follows the image's size.

    Raises:
        ModelError: the captures are not the same ops in the same order, or an op is outside the vocabulary.
    """
    pairs = _side_by_side(program, other)
    builder, values = Builder(), dict[fx.Node, Value]()
    inputs = _declare(program, other, builder, values)
    live, memory = _live(program.graph), Memory(program.graph)
    for node, twin in pairs:
        if node.op != "call_function" or node not in live:
            continue
        values[node] = _convert(node, twin, values, builder)
        for alias in memory.record(node):
            values[alias] = values[node]
    return builder.graph(inputs, _outputs(program, values, builder))


def _side_by_side(program: ExportedProgram, other: ExportedProgram) -> list[tuple[fx.Node, fx.Node]]:
    def wiring(node: fx.Node) -> tuple[str, str, list[str]]:
        return node.op, target_name(node), [source.name for source in node.all_input_nodes]

    first, second = list(program.graph.nodes), list(other.graph.nodes)
    if [wiring(node) for node in first] != [wiring(node) for node in second]:
        raise SizeDependentError(f"the module runs other operations at another image size; {UNTILED}")
    return list(zip(first, second, strict=True))


def _declare(
    program: ExportedProgram, other: ExportedProgram, builder: Builder, values: dict[fx.Node, Value]
) -> tuple[Input, ...]:
    """Name the inputs, and make a constant of every parameter, buffer and tensor the module holds."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    twins = {node.name: node for node in other.graph.nodes if node.op == "placeholder"}
    tensors: Mapping[str, Any] = {**program.constants, **program.state_dict}
    inputs: list[Input] = []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is not InputKind.USER_INPUT:
            held = tensors.get(spec.target or "")
            if isinstance(held, Tensor):
                values[node] = Constant(held.detach(), spec.target or node.name)
            continue
        example = node.meta.get("val")
        if not isinstance(example, Tensor):
            continue
        size = tuple(
            None if a != b else a for a, b in zip(example.shape, twins[node.name].meta["val"].shape, strict=True)
        )
        values[node] = builder.unique(_input_name(node.name, example) if not inputs else node.name)
        inputs.append(Input(str(values[node]), size))
    return tuple(inputs)


def _input_name(argument: str, example: Tensor) -> str:
    if not example.is_floating_point():
        return argument
    if example.ndim == 2 or (example.ndim == 4 and tuple(example.shape[2:]) == (1, 1)):
        return "latent"
    return "image" if example.ndim == 4 else argument


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Find the nodes whose results reach an output or are written into a tensor that may."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in live or mutates(node):
            live |= {node, *node.all_input_nodes}
    return live


def _convert(node: fx.Node, twin: fx.Node, values: dict[fx.Node, Value], builder: Builder) -> Value:
    call = Call(node, twin, values, builder)
    if node.target is operator.getitem:
        return _getitem(node, values)
    if not isinstance(node.target, torch._ops.OpOverload):
        raise ModelError(f"{describe(node)} is outside the op vocabulary; {UNTILED}")
    if all(isinstance(values.get(source), Constant) for source in node.all_input_nodes):
        return _fold(call)
    if call.target not in CONVERTERS:
        raise call.refused("is outside the op vocabulary")
    results = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    if not results[0].is_floating_point():
        raise call.refused(f"computes in {results[0].dtype}")
    return CONVERTERS[call.target](call)


def _getitem(node: fx.Node, values: dict[fx.Node, Value]) -> Value:
    source, index = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(index, int)
    parts = values[source]
    if not isinstance(parts, dict) or index not in parts:
        raise ModelError(f"result {index} of {describe(source)} is not supported; {UNTILED}")
    return parts[index]


def _fold(call: Call) -> Value:
    """Run a call that depends on no input: weight normalisation, say, or a buffer brought into shape."""
    node = call.node
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        raise call.refused("draws random numbers inside the network")
    if _plain(node) != _plain(call.other):
        raise call.varies("a constant")

    def tensor(source: fx.Node) -> Tensor:
        value = call.values[source]
        assert isinstance(value, Constant)
        # An in-place op must not write into the module's own parameter.
        return value.tensor.clone() if mutates(node) else value.tensor

    with torch.no_grad():
        result = node.target(*map_arg(node.args, tensor), **map_arg(node.kwargs, tensor))
    name = ".".join(part for part in (module_path(node), node.name) if part)
    if isinstance(result, Tensor):
        return Constant(result, name)
    return {index: Constant(part, f"{name}.{index}") for index, part in enumerate(result)}


def _plain(node: fx.Node) -> tuple[Any, Any]:
    """Give a call's arguments with its tensors as names."""
    return map_arg(node.args, lambda source: source.name), map_arg(node.kwargs, lambda source: source.name)


def _outputs(program: ExportedProgram, values: dict[fx.Node, Value], builder: Builder) -> tuple[str, ...]:
    nodes = {node.name: node for node in program.graph.nodes}
    names = []
    for output in program.graph_signature.user_outputs:
        value = values.get(nodes[output]) if isinstance(output, str) and output in nodes else None
        if value is None or isinstance(value, dict):
            raise ModelError(f"the module returns {output!r}, which is no tensor computed from its input; {UNTILED}")
        names.append(builder.weight(value) if isinstance(value, Constant) else value)
    return tuple(names)
