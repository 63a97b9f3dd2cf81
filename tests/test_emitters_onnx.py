"""Graphs written as ONNX and run by ONNX Runtime, against the graph itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from tilefuse import ops
from tilefuse.emitters.onnx import EMITTERS, to_onnx
from tilefuse.errors import BackendError, ModelError
from tilefuse.graph import Graph, Input, Node, Shape
from tilefuse.importers.onnx import from_onnx
from tilefuse.ops import (
    Activation,
    ActivationKind,
    AdaptivePool2d,
    BatchNorm,
    Binary,
    Cast,
    Clamp,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Coordinates,
    Fused,
    GroupNorm,
    Linear,
    Mean,
    NearestRounding,
    Op,
    Pad,
    Pair,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    PRelu,
    Reshape,
    Resize,
    Round,
    ShuffleOrder,
    Slice,
    Unary,
)

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

Compare = Callable[..., None]
Case = tuple[Op, tuple[Shape, ...]]
IMAGE: Shape = (2, 6, 17, 13)
SIZES = [(1, 1), (1, 17), (2, 3), (3, 2), (17, 13)]


def _convolutions() -> Iterator[Case]:
    yield Conv2d(padding=(1, 1, 1, 1)), ((4, 6, 3, 3), (4,))
    yield Conv2d((2, 1), (0, 2, 1, 3), (1, 2), 2), ((4, 3, 3, 2), (4,))
    yield Conv2d(padding=(-1, 2, 0, -3)), ((4, 6, 3, 3),)
    for mode in ("reflect", "replicate", "circular"):
        yield Conv2d(padding=(1, 2, 3, 0), padding_mode=mode), ((4, 6, 3, 3), (4,))
    yield ConvTranspose2d((2, 2), (1, 1, 1, 1), (1, 1)), ((6, 4, 3, 3), (4,))
    yield ConvTranspose2d((3, 2), (0, 1, 2, 0), (0, 0), (1, 2), 2), ((6, 2, 4, 3), (4,))
    yield ConvTranspose2d((2, 2), (0, 0, 0, 0), (5, 3)), ((6, 4, 3, 3), (4,))
    yield ConvTranspose2d((2, 2), (0, 0, -2, -1)), ((6, 4, 3, 3), (4,))
    yield ConvTranspose2d((2, 2), (3, 1, 0, 4), (2, 2)), ((6, 4, 3, 3),)


def _pools() -> Iterator[Case]:
    for kind in ("max", "avg"):
        yield Pool2d(kind, (2, 2), (2, 2)), ()
        yield Pool2d(kind, (3, 2), (2, 1), (1, 0, 0, 1)), ()
        yield Pool2d(kind, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=False), ()
        yield Pool2d(kind, (3, 3), (2, 2), (0, 1, 1, 0), (2, 1), count_include_pad=False), ()
        for padding, counted, kernel in itertools.product(((0, 0, 0, 0), (1, 1, 1, 1)), (True, False), (2, 3)):
            yield Pool2d(kind, (kernel, kernel), (2, 3), padding, ceil_mode=True, count_include_pad=counted), ()
        yield Pool2d(kind, (2, 2), (3, 3), (1, 0, 0, 1), (2, 2), ceil_mode=True), ()
        yield AdaptivePool2d(kind, (1, 1)), ()


def _resizes() -> Iterator[Case]:
    for coordinates in get_args(Coordinates):
        for scale in ((Fraction(2), Fraction(2)), (Fraction(3, 2), Fraction(1, 2)), (Fraction(3, 5), Fraction(5, 3))):
            for rounding in get_args(NearestRounding):
                yield Resize("nearest", scale, None, coordinates, rounding), ()
            yield Resize("linear", scale, None, coordinates), ()
            yield Resize("cubic", scale, None, coordinates), ()
            yield Resize("cubic", scale, None, coordinates, cubic_a=-0.5, exclude_outside=True), ()
        for mode in ("nearest", "linear", "cubic"):
            yield Resize(mode, None, (7, 29), coordinates), ()


def _others() -> Iterator[Case]:
    for kind in get_args(ActivationKind):
        yield Activation(kind, 0.3), ()
    for unary in ("abs", "neg", "exp", "square", "erf"):
        yield Unary(unary), ()
    for binary in ("add", "sub", "mul", "div", "max", "min"):
        yield Binary(binary), ((6, 1, 1),)
        yield Binary(binary), ((),)
    for bounds in ((0.0, 1.0), (None, 0.5), (-0.5, None), (None, None)):
        yield Clamp(*bounds), ()
    yield Round(), ()
    yield Cast(torch.float32), ()
    yield PRelu(), ((6, 1, 1),)
    yield PRelu(), ((1,),)
    yield BatchNorm(1e-3), ((6,), (6,), (6,), (6,))
    for groups in (0, 1, 2, 3, 6):
        yield GroupNorm(groups, 1e-3), ((6,), (6,))
    for dims, keepdim in itertools.product(((2, 3), (1,), (0, 1, 2, 3), (-1, -2)), (True, False)):
        yield Mean(dims, keepdim), ()
    yield Concat(1), ((2, 5, 17, 13),)
    yield Concat(-1), ((2, 6, 17, 3),)
    for part in (Slice(1, 0, 3), Slice(1, 1, None, 2), Slice(2, -4, -1), Slice(-1, 3), Slice(3, 0, 99)):
        yield part, ()
    for mode in ("constant", "reflect", "replicate", "circular"):
        yield Pad((1, 2, 3, 0), mode, 0.5), ()
        yield Pad((1, -2, -3, 2), mode, 0.5), ()
    yield Pad((-1, -2, 0, -1)), ()
    yield Pad((0, 0, 0, 0)), ()
    for shape in ((0, -1), (2, 3, 2, -1), (0, 0, 221), (1, 2, 6, 17, 13)):
        yield Reshape(shape), ()
    yield Linear(), ((5, 13), (5,))
    yield Linear(0.5, 2.0, transpose_weight=False), ((13, 5), (5,))
    yield Linear(0.5, 2.0, transpose_input=True), ((5, 17), (5,))


ALL = [*_convolutions(), *_pools(), *_resizes(), *_others()]


def _graph(op: Op, shape: Shape, extras: tuple[Shape, ...], *, dynamic: bool = False, constant: bool = True) -> Graph:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{i}": torch.rand(s, generator=generator) * 0.2 + 0.1 for i, s in enumerate(extras)}
    # An op that joins or contracts along height or width fixes them.
    fixes = any(len(extra) > 3 or extra in {(5, 13), (13, 5), (5, 17)} for extra in extras) and not isinstance(
        op, Conv2d | ConvTranspose2d
    )
    open_size = (None, shape[1], None, None) if dynamic and not fixes and not isinstance(op, Reshape) else shape
    inputs = [Input("x", open_size)]
    if not constant:
        inputs += [Input(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    node = Node(op, ("x", *tensors), "y")
    return Graph(tuple(inputs), (node,), ("y",), tensors if constant else {})


def _run(model: object, *inputs: Tensor) -> list[Tensor]:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feeds)]


def _image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ids(value: object) -> str | None:
    return str(value) if isinstance(value, Op) else None


@pytest.mark.parametrize(("op", "extras"), ALL, ids=_ids)
def test_onnx_runtime_agrees(op: Op, extras: tuple[Shape, ...], assert_close: Compare) -> None:
    x = _image(*IMAGE)
    (expected,) = _graph(op, IMAGE, extras).evaluate(x)
    for graph, shapes in ((_graph(op, IMAGE, extras), [IMAGE]), (_graph(op, IMAGE, extras, dynamic=True), None)):
        try:
            (actual,) = _run(to_onnx(graph, shapes=shapes), x)
        except BackendError:
            # At an open size, nearest by an odd factor hangs on the rounding of the library.
            assert shapes is None
            assert isinstance(op, Resize)
            assert op.mode == "nearest"
        else:
            assert_close(actual, expected, what=str(op))


IMPORTED = [c for c in ALL if not isinstance(c[0], Resize) and c[0] != Linear(0.5, 2.0, transpose_input=True)]


@pytest.mark.parametrize(("op", "extras"), IMPORTED, ids=_ids)
def test_import_gives_the_op_back(op: Op, extras: tuple[Shape, ...], assert_close: Compare) -> None:
    graph = _graph(op, IMAGE, extras)
    again = from_onnx(to_onnx(graph, shapes=[IMAGE]))
    x = _image(*IMAGE)
    assert_close(again.evaluate(x)[0], graph.evaluate(x)[0], what=str(op))


SMALL = [case for case in (*_convolutions(), *_pools(), *_others()) if all(len(extra) != 4 for extra in case[1][1:])]


@pytest.mark.parametrize("size", SIZES)
def test_small_and_odd_images_agree(size: tuple[int, int], assert_close: Compare) -> None:
    shape = (1, 6, *size)
    x = _image(*shape)
    ran = 0
    for op, extras in SMALL:
        graph = _graph(op, shape, extras)
        try:
            graph.shapes(shape)
        except ModelError:
            continue
        (expected,) = graph.evaluate(x)
        if not torch.isfinite(expected).all():
            continue  # a maximum over padding alone
        assert_close(_run(to_onnx(graph, shapes=[shape]), x)[0], expected, what=f"{op} at {size}")
        ran += 1
    assert ran > 40


def test_every_op_of_the_vocabulary_has_an_emitter_and_a_case() -> None:
    known = {member for member in vars(ops).values() if isinstance(member, type) and issubclass(member, Op)} - {Op}
    assert known == set(EMITTERS) | {Fused}
    assert {type(op) for op, _ in ALL} | {PixelShuffle, PixelUnshuffle} == set(EMITTERS)


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shuffles_in_both_orders(order: ShuffleOrder, factor: int, assert_close: Compare) -> None:
    for op, shape in (
        (PixelShuffle(factor, order), (2, 4 * factor**2, 3, 5)),
        (PixelUnshuffle(factor, order), (2, 4, 3 * factor, 5 * factor)),
    ):
        graph, x = _graph(op, shape, (), dynamic=True), _image(*shape)
        model = to_onnx(graph)
        assert_close(_run(model, x)[0], graph.evaluate(x)[0], what=str(op))
        assert_close(from_onnx(model).evaluate(x)[0], graph.evaluate(x)[0], what=f"{op} imported again")


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("size", [(2, 3), (5, 4), (12, 10)])
def test_adaptive_pooling_needs_known_sizes(kind: Literal["max", "avg"], size: Pair, assert_close: Compare) -> None:
    shape = (1, 3, 12, 10)
    graph, x = _graph(AdaptivePool2d(kind, size), shape, (), dynamic=True), _image(*shape)
    with pytest.raises(BackendError, match="adaptive_pool2d"):
        to_onnx(graph)
    if kind == "max" and (12 % size[0] or 10 % size[1]):
        with pytest.raises(BackendError, match="adaptive_pool2d"):
            to_onnx(graph, shapes=[shape])
        return
    assert_close(_run(to_onnx(graph, shapes=[shape]), x)[0], graph.evaluate(x)[0])


def test_fused_ops_are_taken_apart(assert_close: Compare) -> None:
    members = (Conv2d(padding=(1, 1, 1, 1)), PRelu(), GroupNorm(2), Binary("add"), PixelShuffle(2))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "w": torch.randn(8, 6, 3, 3, generator=generator),
        "b": torch.randn(8, generator=generator),
        "slope": torch.rand(8, 1, 1, generator=generator),
        "scale": torch.rand(8, generator=generator),
        "shift": torch.rand(8, generator=generator),
        "residual": torch.rand(8, 1, 1, generator=generator),
    }
    node = Node(Fused(members, (3, 1, 2, 1, 0)), ("x", *weights), "y")
    graph = Graph((Input("x", (None, 6, None, None)),), (node,), ("y",), weights)
    x = _image(*IMAGE)
    assert_close(_run(to_onnx(graph), x)[0], graph.evaluate(x)[0])


def test_open_sizes_run_at_any_size(assert_close: Compare) -> None:
    weights = {"w": torch.randn(12, 3, 3, 3), "b": torch.randn(12), "one": torch.ones(12), "zero": torch.zeros(12)}
    nodes = (
        Node(Conv2d(padding=(1, 1, 1, 1), padding_mode="replicate"), ("x", "w", "b"), "a"),
        Node(GroupNorm(3), ("a", "one", "zero"), "g"),
        Node(Activation("silu"), ("g",), "s"),
        Node(PixelShuffle(2), ("s",), "p"),
        Node(Resize("linear", (Fraction(2), Fraction(2))), ("x",), "u"),
        Node(Binary("add"), ("p", "u"), "y"),
    )
    graph = Graph((Input("x", (None, 3, None, None)),), nodes, ("y",), weights)
    model = to_onnx(graph)
    (dims,) = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input]
    assert dims == ["batch", 3, "height", "width"]
    again = from_onnx(model)
    assert again.inputs[0].shape == (None, 3, None, None)
    for size in ((1, 1), (2, 3), (17, 63)):
        x = _image(2, 3, *size)
        assert_close(_run(model, x)[0], graph.evaluate(x)[0], max_abs=1e-4, what=f"{size}")
        assert_close(again.evaluate(x)[0], graph.evaluate(x)[0], max_abs=1e-4, what=f"imported at {size}")


def test_outputs_that_no_node_makes_are_copied(assert_close: Compare) -> None:
    weights = {"w": torch.tensor([1.0, 2.0])}
    graph = Graph((Input("x", (2,)),), (Node(Unary("neg"), ("x",), "y"),), ("x", "y", "y", "w"), weights)
    x = torch.tensor([3.0, -4.0])
    for actual, expected in zip(_run(to_onnx(graph), x), graph.evaluate(x), strict=True):
        assert_close(actual, expected)


def test_weights_may_be_run_time_inputs(assert_close: Compare) -> None:
    shapes = (IMAGE, (4, 3, 3, 3), (4,))
    graph = _graph(Conv2d(groups=2), IMAGE, shapes[1:], constant=False)
    values = [_image(*shape) for shape in shapes]
    assert_close(_run(to_onnx(graph), *values)[0], graph.evaluate(*values)[0])


def test_half_weights_make_a_half_model() -> None:
    graph = _graph(Conv2d(), IMAGE, ((4, 6, 3, 3), (4,))).to(dtype=torch.float16)
    model = to_onnx(graph)
    assert {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)} == {10}
    assert {tensor.data_type for tensor in model.graph.initializer} == {10}


def test_what_onnx_lacks_is_refused_by_name() -> None:
    class Twist(Op):
        name = "twist"

        def apply(self, *inputs: Tensor) -> Tensor:
            return inputs[0]

    with pytest.raises(BackendError, match="twist"):
        to_onnx(_graph(Twist(), IMAGE, ()))
    with pytest.raises(BackendError, match="opset 12"):
        to_onnx(_graph(Unary("neg"), IMAGE, ()), opset=12)
    wide = Pool2d("avg", (2, 2), (1, 1), (2, 2, 2, 2))
    with pytest.raises(BackendError, match=r"pool2d with padding \(2, 2, 2, 2\)"):
        to_onnx(_graph(wide, IMAGE, (), dynamic=True))


def test_padding_wider_than_the_kernel_needs_known_sizes(assert_close: Compare) -> None:
    x = _image(*IMAGE)
    for op in (Pool2d("max", (2, 2), (2, 2), (2, 1, 0, 2), (2, 2)), Pool2d("avg", (2, 3), (2, 1), (1, 3, 1, 3))):
        graph = _graph(op, IMAGE, ())
        assert_close(_run(to_onnx(graph), x)[0], graph.evaluate(x)[0], what=str(op))
