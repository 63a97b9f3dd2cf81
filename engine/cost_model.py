"""Predict how long a backend takes from the graph's arithmetic and traffic: an order to try, never a measurement.

The rates are of one AVX-512 core, read off SRVGGNetCompact 64x16 at 128x128, ESPCN, EDSR and the bundled Compact; only
their ratios decide the order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from tilefuse.backends.base import Precision
from tilefuse.cost import node_flops
from tilefuse.graph import Graph, Node, Shape
from tilefuse.model import Model
from tilefuse.ops import Conv2d, Fused
from tilefuse.planner import input_shapes

# GFLOP/s of one core in fp32.
_RATES = {"ncnn": 80.0, "openvino": 110.0, "onnxruntime": 85.0, "torch_eager": 90.0, "inductor": 105.0}
_REDUCED_GAIN = {"openvino": 1.9, "torch_eager": 1.7, "inductor": 1.9}
# A Winograd convolution F(4, 3) multiplies a quarter as often, and transforms every tile of each input and output
# channel, which costs as much as this many channels on the other side. It gains from about 32 channels on.
_WINOGRAD_SHARE, _WINOGRAD_TRANSFORMS = 0.25, 12.0
# GB/s of one core, and the share of values that a backend passes on through memory.
_BANDWIDTH = 8.0
_TRAFFIC = {"ncnn": 0.6, "openvino": 0.5, "onnxruntime": 0.6, "torch_eager": 1.0, "inductor": 0.5}
# Libraries that compile code for the model: seconds for anything, and for each of its layers. On one core Inductor took
# 14.4 s for ESPCN's 8 layers, 13.7 for EDSR's 74, 21.3 for ESRGAN's 106 and 50 to 70 for the 1093 of RRDB-23.
_COMPILE_AT_ALL = {"inductor": 12.0}
_COMPILE_PER_NODE = {"inductor": 0.05, "openvino": 0.004, "onnxruntime": 0.002, "ncnn": 0.004, "torch_eager": 0.001}
_DEFAULT_RATE, _DEFAULT_TRAFFIC = 60.0, 1.0
# Rounding, clipping and interleaving a sample of the result outside the library, in one thread.
_CONVERSION_SECONDS = 3e-9
_CONVERTING = ("openvino", "onnxruntime", "triton_fused")


def predicted_seconds(model: Model, backend: str, precision: Precision, shapes: Sequence[Shape], threads: int) -> float:
    """Estimate one run at the given input shapes; infinite for a model whose graph is unknown."""
    if model.graph is None:
        return float("inf")
    sizes = model.graph.shapes(*shapes)
    work = sum(_effective_flops(node, sizes, backend) for node in model.graph.nodes)
    gain = 1.0 if precision == "fp32" else _REDUCED_GAIN.get(backend, 1.5)
    arithmetic = work / (_RATES.get(backend, _DEFAULT_RATE) * gain * 1e9)
    itemsize = 4 if precision == "fp32" else 2
    traffic = itemsize * _TRAFFIC.get(backend, _DEFAULT_TRAFFIC) * _moved(model.graph, sizes)
    return (arithmetic + traffic / (_BANDWIDTH * 1e9)) / max(1, threads)


def predicted_image_seconds(
    model: Model, backend: str, precision: Precision, size: tuple[int, int, int], threads: int
) -> float:
    """Estimate images of `size` (images, height, width) from a patch, so that large ones cost nothing to estimate."""
    if model.graph is None or model.footprint is None:
        return float("inf")
    found = model.footprint
    images, height, width = size
    patch = found.y.padded(min(height, 256), found.minimum_px), found.x.padded(min(width, 256), found.minimum_px)
    shapes = input_shapes(model.graph, 1, patch)
    seconds = predicted_seconds(model, backend, precision, shapes, threads)
    if backend not in _CONVERTING:
        seconds += _CONVERSION_SECONDS * model.image_channels[1] * prod(found.output_size(*patch))
    return seconds * images * max(1.0, height * width / (patch[0] * patch[1]))


def predicted_compile_seconds(model: Model, backend: str) -> float:
    """Estimate how long compiling takes."""
    nodes = 20 if model.graph is None else len(model.graph.nodes)
    return _COMPILE_AT_ALL.get(backend, 0.05) + nodes * _COMPILE_PER_NODE.get(backend, 0.05)


def _effective_flops(node: Node, sizes: Mapping[str, Shape], backend: str) -> float:
    work = float(node_flops(node, sizes))
    op = node.op.members[0] if isinstance(node.op, Fused) else node.op
    if backend != "ncnn" or not isinstance(op, Conv2d):
        return work
    channels_out, channels_in, *kernel = sizes[node.inputs[1]]
    if not (op.stride == op.dilation == (1, 1) and op.groups == 1 and kernel == [3, 3]):
        return work
    share = _WINOGRAD_SHARE + _WINOGRAD_TRANSFORMS * (1.0 / channels_in + 1.0 / channels_out)
    return work if share > 1.0 else work * share


def _moved(graph: Graph, sizes: Mapping[str, Shape]) -> int:
    """Values that nodes read and write, weights left out."""
    return sum(
        prod(sizes[node.output]) + sum(prod(sizes[name]) for name in node.inputs if name not in graph.weights)
        for node in graph.nodes
    )
