"""Capture: a module or an ONNX file becomes a graph, compared with the original before it is handed on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from fractions import Fraction
from io import StringIO
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import config
from torch.utils._pytree import tree_leaves

from tilefuse.errors import ModelError
from tilefuse.graph import Graph
from tilefuse.importers.aten import convert
from tilefuse.importers.aten_call import UNTILED, SizeDependentError
from tilefuse.ops import Conv2d, PixelUnshuffle, Pool2d, Resize, Slice

if TYPE_CHECKING:
    from onnx import ModelProto

# Largest difference between module and graph, as a share of the output's largest value.
TOLERANCE = 1e-4

# Setting of torch.fx, of the whole process: a capture in another thread waits.
TRACES_OFF = "do_not_emit_stack_traces"
_TRACING = RLock()

INSTEAD_OF_PROGRAM = (
    "give the torch.nn.Module that was exported, or an .onnx file: torch.onnx.export(program, f='model.onnx')"
)

Tensors = tuple[Tensor, ...]
Growth = tuple[Fraction, Fraction]

SAME: Growth = (Fraction(1), Fraction(1))


def from_onnx(source: str | Path | ModelProto, constants: Mapping[str, NDArray[Any]] | None = None) -> Graph:
    """Convert an ONNX file or model to a graph; see `tilefuse.importers.onnx.from_onnx`."""
    from tilefuse.importers.onnx import from_onnx

    return from_onnx(source, constants)


def from_module(module: nn.Module, *example: Tensor) -> Graph:
    """Capture a module as a graph that takes any batch and, for images, any height and width.

    The module is exported in eval mode at the example's size and at a second one; its modes are put back afterwards.
    The graph is compared with the module at the example's size, at a third size, and, where it claims to take any
    size, at an odd one. A module that runs at one size only gives a graph of that size.

    Args:
        module: a generator; its forward takes the example's tensors.
        example: tensors [N, C, H, W] of images, of a size the module takes, or [N, Z] or [N, Z, 1, 1] of latents.

    Raises:
        ModelError: an op lies outside the vocabulary, the module can't be exported, or it branches on size or data.
    """
    if not example:
        raise ModelError("from_module needs an example input, such as torch.zeros(1, 3, 32, 32)")
    with inference_mode_of(module), torch.no_grad():
        try:
            with without_stack_traces():
                return _capture(module, example)
        except ModelError:
            # Once more, for an error that says in which line of the module's code the op stands.
            return _capture(module, example)


def _capture(module: nn.Module, example: Tensors) -> Graph:
    expected = _run(module, example)
    program = _export(module, example)
    failure: SizeDependentError | None = None
    for second, third in _other_sizes(example):
        if failure and not _grows(example, second):
            break
        try:
            others = _export(module, second), _run(module, third)
        except ModelError:
            continue
        try:
            graph = convert(program, others[0])
        except SizeDependentError as error:
            failure = failure or error
            continue
        _compare(graph, example, expected)
        _compare(graph, third, others[1])
        _compare_odd(graph, module, example)
        return graph
    raise failure or ModelError("the module takes neither images of another size nor a batch of another length")


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Keep torch.export from recording the line of code of every op, which takes a quarter of its time."""
    with _TRACING:
        before = getattr(config, TRACES_OFF, False)
        setattr(config, TRACES_OFF, True)
        try:
            yield
        finally:
            setattr(config, TRACES_OFF, before)


@contextmanager
def inference_mode_of(module: nn.Module) -> Iterator[None]:
    """Switch a module and its parts to eval mode, and back to what each was.

    Raises:
        ModelError: it is a program of torch.export, whose mode is fixed, or holds one.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        try:
            module.eval()
        except NotImplementedError as error:
            raise ModelError(
                f"{type(module).__name__} is or holds an exported program, which keeps the sizes and the mode it was "
                f"exported in; {INSTEAD_OF_PROGRAM}"
            ) from error
        yield
    finally:
        for part, training in modes:
            part.training = training


def _run(module: nn.Module, inputs: Tensors) -> list[Tensor]:
    try:
        result = module(*inputs)
    except Exception as error:  # a stranger's forward may raise anything
        raise ModelError(f"the module can't run an input of {_sizes(inputs)}: {_reason(error)}") from error
    leaves = tree_leaves(result)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise ModelError("the module returns something else than tensors")
    return leaves


def _export(module: nn.Module, example: Tensors) -> ExportedProgram:
    with _silence():
        try:
            return torch.export.export(module, example, strict=False)
        except Exception as error:  # torch.export raises errors of many unrelated types
            raise ModelError(f"torch.export can't capture the module: {_reason(error)}; {UNTILED}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep torch.export from printing what its error says too: warnings, log records, the program on stderr."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    levels = {log: log.level for log in map(logging.getLogger, names)}
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        for log in levels:
            log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for log, level in levels.items():
                log.setLevel(level)


def _other_sizes(example: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
    """Give pairs of further inputs: a few pixels larger, whole multiples, and at last another batch alone.

    A few pixels cost little; whole multiples suit a module that takes only multiples of some number.
    """
    images = [tensor for tensor in example if _is_image(tensor)]
    if images:
        height, width = images[0].shape[2:]
        few = (((height + n, width + 2 * n), (height + 2 * n, width + n)) for n in (4, 8))
        for sizes in (*few, ((2 * height, 3 * width), (3 * height, 2 * width))):
            second, third = ((Fraction(y, height), Fraction(x, width)) for y, x in sizes)
            if all(_fits(image, growth) for image in images for growth in (second, third)):
                yield _grown(example, 1, second), _grown(example, 1, third)
    yield _grown(example, 1, SAME), _grown(example, 2, SAME)


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tuple(tensor.shape[2:]) != (1, 1)


def _grows(example: Tensors, other: Tensors) -> bool:
    return any(a.shape[1:] != b.shape[1:] for a, b in zip(example, other, strict=True))


def _fits(image: Tensor, growth: Growth) -> bool:
    return all((size * factor).denominator == 1 for size, factor in zip(image.shape[2:], growth, strict=True))


def _grown(example: Tensors, extra: int, growth: Growth) -> Tensors:
    """Make random inputs of `extra` more images a batch, each `growth` times as large."""
    generator = torch.Generator().manual_seed(extra)
    made = []
    for tensor in example:
        shape = list(tensor.shape)
        if shape:
            shape[0] += extra
        if _is_image(tensor):
            shape[2:] = [int(size * factor) for size, factor in zip(shape[2:], growth, strict=True)]
        draw = torch.rand if _is_image(tensor) else torch.randn
        values = draw(shape, generator=generator) if tensor.is_floating_point() else torch.zeros(shape)
        made.append(values.to(device=tensor.device, dtype=tensor.dtype))
    return tuple(made)


def _compare(graph: Graph, inputs: Tensors, expected: list[Tensor]) -> None:
    try:
        actual = graph.evaluate(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the module takes an input of {_sizes(inputs)}, its captured graph does not ({_reason(error)}): the "
            f"module branches on the image's size; {UNTILED}"
        ) from error
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            found = f"of {_sizes((ours,))} instead of {_sizes((theirs,))}"
        else:
            share = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)).item() if ours.numel() else 0.0
            if share <= TOLERANCE:
                continue
            found = f"off by {share:.1e} of the largest value"
        raise ModelError(
            f"the captured graph gives an output {found} for an input of {_sizes(inputs)}: the module branches on the "
            f"image's size or data, or gives non-finite values; {UNTILED}"
        )


def _compare_odd(graph: Graph, module: nn.Module, example: Tensors) -> None:
    """Compare at one more row and column: a module that pads to a multiple inside itself shows it only there.

    A graph that goes to a lower resolution is spared: it is only ever run at multiples of its own.
    """
    images = [tensor for tensor in example if _is_image(tensor)]
    if not images or all(size is not None for spec in graph.inputs for size in spec.shape[2:]) or _downsamples(graph):
        return
    height, width = images[0].shape[2:]
    growth = Fraction(height + 1, height), Fraction(width + 1, width)
    if all(_fits(image, growth) for image in images):
        odd = _grown(example, 0, growth)
        try:
            expected = _run(module, odd)
        except ModelError:
            return
        _compare(graph, odd, expected)


def _downsamples(graph: Graph) -> bool:
    for node in graph.nodes:
        match node.op:
            case PixelUnshuffle():
                return True
            case Conv2d(stride=stride) | Pool2d(stride=stride) if stride != (1, 1):
                return True
            case Resize(scale=scale) if scale is not None and min(scale) < 1:
                return True
            case Slice(dim=dim, step=step) if dim > 1 and step != 1:
                return True
    return False


def _sizes(tensors: Tensors) -> str:
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
