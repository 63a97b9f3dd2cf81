"""ONNX files that must be refused: truncated, lying, reaching outside their folder, or unfolding without end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Attack = tuple[str, Path, str]
Write = Callable[[Path], object]
Case = tuple[str, Write, str]
FLOAT = TensorProto.FLOAT


def network(*nodes: Any, weights: dict[str, Any] | None = None, inputs: tuple[Any, ...] = ()) -> Any:
    """Return a model from `x` [n, 3, h, w] to `y`."""
    x = helper.make_tensor_value_info("x", FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", FLOAT, ["a", "b", "c", "d"])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", [x, *inputs], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolution() -> Any:
    """Return a small well-meant model."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return network(helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), weights={"w": weight})


def external(location: str, **fields: Any) -> Any:
    """Return the small model with its weight in another file."""
    model = convolution()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def build(root: Path) -> list[Attack]:
    """Write every attack into a folder of its own; return their names, paths and what must be said of them."""
    (root / "secret.bin").write_bytes(bytes(10_000))
    attacks = []
    for name, write, expected in (*_broken_files(), *_external_data(root), *_lies(), *_unfolding(), *_structure()):
        folder = root / name.replace(" ", "_")
        folder.mkdir()
        path = folder / "model.onnx"
        write(path)
        attacks.append((name, path, expected))
    return attacks


def _saved(model: Any) -> Write:
    return lambda path: path.write_bytes(model.SerializeToString())


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _broken_files() -> Iterator[Case]:
    whole = convolution().SerializeToString()
    yield "empty", lambda path: path.write_bytes(b""), "not an ONNX model"
    yield "text", lambda path: path.write_text("not a model\n" * 100), "not an ONNX model"
    yield "zeros", lambda path: path.write_bytes(bytes(10_000)), "not an ONNX model"
    yield "noise", lambda path: path.write_bytes(random.Random(0).randbytes(10_000)), "not an ONNX model"
    yield "folder", lambda path: path.mkdir(), "not a file"
    yield "missing", lambda path: None, "no such file"
    yield "pipe", lambda path: os.mkfifo(path), "not a file"
    yield "huge and sparse", lambda path: _sparse(path, 2**31 + 1), "bytes in all"
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        yield f"truncated at {cut}", lambda path, cut=cut: path.write_bytes(whole[:cut]), "truncated|not an ONNX"


def _external_data(root: Path) -> Iterator[Case]:
    size = 4 * 3 * 3 * 3 * 4

    def case(location: str, prepare: Write = lambda folder: None, **fields: Any) -> Write:
        def write(path: Path) -> None:
            prepare(path.parent)
            path.write_bytes(external(location, **fields).SerializeToString())

        return write

    def data(length: int) -> Write:
        return lambda folder: (folder / "w.bin").write_bytes(bytes(length))

    def link(name: str, target: Path) -> Write:
        return lambda folder: (folder / name).symlink_to(target)

    secret, outside = root / "secret.bin", "outside the model's folder"
    yield "absolute data", case(str(secret), length=size), outside
    yield "data above", case("../secret.bin", length=size), outside
    yield "data above by a detour", case("s/../../secret.bin", lambda f: (f / "s").mkdir(), length=size), outside
    yield "linked data", case("w.bin", link("w.bin", secret), length=size), outside
    yield "linked folder", case("up/secret.bin", link("up", root), length=size), outside
    yield "looped link", case("w.bin", lambda folder: link("w.bin", folder / "w.bin")(folder)), "w"
    yield "piped data", case("w.bin", lambda folder: os.mkfifo(folder / "w.bin"), length=size), "not a file"
    yield "data is a folder", case("w.bin", lambda folder: (folder / "w.bin").mkdir(), length=size), "not a file"
    yield "missing data", case("w.bin"), "no such file"
    yield "data without a name", case(""), outside
    yield "data with a zero byte", case("w\0.bin"), "null byte"
    yield "data with an endless name", case("w" * 5000), "name too long"
    yield "data too short", case("w.bin", data(size - 1)), "raw_data size|can't be decoded"
    yield "data past its end", case("w.bin", data(size), offset=size, length=size), "expects"
    yield "negative offset", case("w.bin", data(size), offset=-1, length=size), "expects"
    yield "negative length", case("w.bin", data(size), length=-size), "expects"
    yield "offset in words", case("w.bin", data(size), offset="ten"), "malformed external data"
    yield "endless length", case("w.bin", data(size), length=2**62), "expects"
    yield "huge data", case("w.bin", lambda folder: _sparse(folder / "w.bin", 2**31 + 1)), "bytes in all"

    hidden = external(str(secret), length=size).graph
    branches = helper.make_node("If", ["c"], ["y"], then_branch=hidden, else_branch=hidden)
    yield "data of a branch", _saved(network(_constant("c", np.array(True)), branches)), outside
    model = network(helper.make_node("Relu", ["x"], ["y"]))
    node = helper.make_node("Constant", [], ["p"], value=hidden.initializer[0])
    model.functions.append(helper.make_function("own", "Leak", [], ["p"], [node], [helper.make_opsetid("", 17)]))
    yield "data of a function", _saved(model), outside


def _constant(name: str, value: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def _added(weight: Any) -> Any:
    """Return a model that adds a weight to the image."""
    return network(helper.make_node("Add", ["x", "w"], ["y"]), weights={"w": weight})


def _lies() -> Iterator[Case]:
    one = np.ones((3, 1, 1), np.float32)
    yield "NaN weight", _saved(_added(one * np.nan)), "'w' holds NaN or infinite"
    yield "infinite weight", _saved(_added(one * -np.inf)), "'w' holds NaN or infinite"
    yield "double past single precision", _saved(_added(one.astype(np.float64) * 1e300)), "'w' holds NaN or infinite"
    yield "complex weight", _saved(_added(one.astype(np.complex64))), "complex64"
    yield "text weight", _saved(_added(np.array(["a", "b", "c"], dtype=object))), "'w' holds text"
    for name, dims in {"negative": [-3, 1, 1], "overflowing": [2**40, 2**40, 1], "too large": [2**33, 1, 1]}.items():
        model = _added(one)
        model.graph.initializer[0].dims[:] = dims
        yield f"{name} dims", _saved(model), "w"
    model = _added(one)
    model.graph.initializer[0].data_type = 999
    yield "unknown data type", _saved(model), "999"
    model = _added(one)
    model.graph.initializer.append(model.graph.initializer[0])
    yield "weight twice", _saved(model), "initializer name is not unique"


def _unfolding() -> Iterator[Case]:
    """Small files whose constants would fill any memory."""

    def case(kind: str, *values: Any) -> Write:
        constants = [_constant(f"c{i}", value) for i, value in enumerate(values)]
        names = [f"c{i}" for i in range(len(values))]
        grow = helper.make_node(kind, ["c0", "", "c1"] if kind == "Resize" else names, ["w"])
        return _saved(network(*constants, grow, helper.make_node("Add", ["x", "w"], ["y"])))

    shape, one, image = np.array([2**20, 2**20]), np.ones(1, np.float32), np.ones((1, 1, 1, 1), np.float32)
    yield "endless fill", case("ConstantOfShape", shape), "too large"
    yield "endless expansion", case("Expand", one, shape), "too large"
    yield "endless tiles", case("Tile", one, np.array([2**40])), "too large"
    yield "endless range", case("Range", np.float32(0), np.float32(1e30), np.float32(1e-9)), "too large"
    yield "endless gather", case("Gather", np.ones((2, 2**16), np.float32), np.zeros(2**16, np.int64)), "too large"
    yield "endless padding", case("Pad", image, np.array([0] * 6 + [2**20] * 2)), "unfold to more"
    yield "endless enlargement", case("Resize", image, np.array([1, 1, 6e4, 6e4], np.float32)), "unfold to more"
    tall, wide = np.ones((2**18, 1), np.float32), np.ones((1, 2**18), np.float32)
    yield "endless broadcast", case("Add", tall, wide), "too large"
    doubling = [helper.make_node("Concat", [f"d{i}"] * 8, [f"d{i + 1}"], axis=0) for i in range(40)]
    last = helper.make_node("Add", ["x", "d40"], ["y"])
    yield "endless doubling", _saved(network(*doubling, last, weights={"d0": np.ones(8, np.float32)})), "too large"
    first = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Add", ["s", "one"], ["s0"])]
    growing = [helper.make_node("Mul", [f"s{i}"] * 2, [f"s{i + 1}"]) for i in range(60)]
    end = helper.make_node("Reshape", ["x", "s60"], ["y"])
    model = network(*first, *growing, end, weights={"one": np.ones(4, np.int64)})
    yield "endless shape arithmetic", _saved(model), "too involved"


def _structure() -> Iterator[Case]:
    copy = helper.make_node("Identity", ["x"], ["a"])
    loop = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    yield "cycle", _saved(network(*loop)), "input 'b'|'b'"
    yield "value twice", _saved(network(copy, copy, helper.make_node("Relu", ["a"], ["y"]))), "SSA|used as output"
    yield "output of nothing", _saved(network(copy)), "'y'"
    yield "custom domain", _saved(network(helper.make_node("Magic", ["x"], ["y"], domain="own"))), "own::Magic"
    again = helper.make_node("Again", ["x"], ["y"], domain="own")
    model = network(again)
    model.functions.append(helper.make_function("own", "Again", ["x"], ["y"], [again], [helper.make_opsetid("own", 1)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    yield "function that calls itself", _saved(model), "functions of its own"
    body = helper.make_graph([copy], "b", [], [helper.make_tensor_value_info("a", FLOAT, ["n", 3, "h", "w"])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    yield "branches", _saved(network(_constant("c", np.array(True)), branch)), "If"

    weight = {"w": np.ones((4, 3, 3, 3), np.float32)}
    for attribute, value in (
        ("strides", [0, 0]),
        ("dilations", [0, 1]),
        ("pads", [-1, 0, 0, 0]),
        ("pads", [1]),
        ("kernel_shape", [3, 3, 3]),
        ("group", 0),
        ("group", 2**40),
        ("auto_pad", "MAYBE"),
        ("strides", "fast"),
    ):
        model = network(helper.make_node("Conv", ["x", "w"], ["y"], **{attribute: value}), weights=weight)
        yield f"{attribute} {value}", _saved(model), f"{attribute}|channels|attribute"
    yield (
        "axes that are none",
        _saved(network(helper.make_node("Transpose", ["x"], ["y"], perm=[0, 9, 1, 2]))),
        "Transpose",
    )
    yield "no blocks", _saved(network(helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=0))), "blocksize = 0"
    for name, inputs, sizes in (
        ("scales of nothing", ["x", "", "s"], np.array([1, 1, 0, np.nan], np.float32)),
        ("unknown batch", ["x", "", "", "s"], np.array([1, 3, 5, 7])),
    ):
        yield name, _saved(network(_constant("s", sizes), helper.make_node("Resize", inputs, ["y"]))), "Resize"
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"])
    yield "two unknown sizes", _saved(network(_constant("s", np.array([-1, -1])), reshape)), r"\[-1, -1\]"
