"""A convolution prepared for the kernels: its weight packed once, and the arithmetic that places its output.

Every layer is the same implicit product. An output row Y of the layer is ((grid row · phases + phase) · spread + i),
where the phases are separate products (a nearest upsampling before, or a stride of a transposed convolution, splits the
output into them) and the spread is a pixel shuffle in the store: columns of the weight are ordered (i, j, channel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.toolchain import FLOATS, narrowed, require, require_tensor
from tilefuse.ops.base import Pair, Sides

ONE: Pair = (1, 1)
# A matrix instruction computes at least this many columns.
LEAST_COLUMNS = 16
# Pixels side by side that become one with more columns, where a layer has so few that most of the product is wasted.
WIDENED = 4
LEAST_WIDENED = 16


@dataclass(frozen=True)
class Axis:
    """The arithmetic of one axis.

    Attributes:
        start: (a, b, c): phase i reads its first tap at input position grid · stride + (i + a) // b + c.
        extent: (mul, add, div): the output of n inputs has (n · mul + add) // div positions before the pixel shuffle.
    """

    start: tuple[int, int, int]
    extent: tuple[int, int, int]

    def first(self, phase: int) -> int:
        """Give the input position of a phase's first tap for grid position 0."""
        a, b, c = self.start
        return (phase + a) // b + c

    def length(self, size: int) -> int:
        """Give the number of output positions before the pixel shuffle."""
        mul, add, div = self.extent
        return (size * mul + add) // div


@dataclass(frozen=True)
class Layer:
    """A packed layer: pack once, run often. Made by the `pack_...` functions.

    Attributes:
        weight: contiguous [phases, columns, kernel · inputs]; columns count all groups and the spread.
        inputs: input channels a group.
        spread: positions (rows, columns of pixels) one grid position writes.
        shuffle: the epilogue's pixel-shuffle factor, which the order of the columns follows.
        axes: of height and of width.
    """

    weight: Tensor
    inputs: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    groups: int
    phases: Pair
    spread: Pair
    shuffle: int
    axes: tuple[Axis, Axis]

    @property
    def channels(self) -> int:
        """Channels of the layer before the pixel shuffle: what a bias has."""
        return self.outputs * self.shuffle**2

    @property
    def outputs(self) -> int:
        """Channels of the result."""
        return self.weight.shape[1] // (self.spread[0] * self.spread[1])

    def output_size(self, height: int, width: int) -> Pair:
        """Give height and width of the result for an input's."""
        rows, columns = (axis.length(size) for axis, size in zip(self.axes, (height, width), strict=True))
        return rows * self.shuffle, columns * self.shuffle

    def to(self, device: torch.device | str) -> Layer:
        """Copy the packed weight to a device."""
        return replace(self, weight=self.weight.to(device))


def pack_conv2d(
    weight: Tensor,
    *,
    stride: Pair = ONE,
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = ONE,
    groups: int = 1,
    shuffle: int = 1,
) -> Layer:
    """Pack a convolution's weight [O, C / groups, KH, KW]."""
    check_weight(weight, stride, dilation, groups, shuffle)
    require(weight.shape[0] % groups == 0, "groups", groups, f"a divisor of the weight's {weight.shape[0]} outputs")
    require(weight.shape[0] % shuffle**2 == 0, "epilogue.shuffle", shuffle, f"r with r² dividing {weight.shape[0]}")
    top, left, bottom, right = padding
    axes = tuple(
        Axis((0, 1, -before), (1, before + after - d * (k - 1) - 1 + s, s))
        for before, after, k, d, s in zip((top, left), (bottom, right), weight.shape[2:], dilation, stride, strict=True)
    )
    if groups > 1 and shuffle > 1:
        weight, groups = dense(weight, groups), 1
    spread = (shuffle, shuffle)
    narrow = groups == 1 and shuffle == 1 and weight.shape[0] * WIDENED <= LEAST_COLUMNS and dilation[1] == 1
    # With fewer inputs several taps share a step of the reduction: a pixel's sum would depend on its column modulo 4.
    if narrow and weight.shape[1] >= LEAST_WIDENED:
        weight, spread = _widened(weight, stride[1]), (1, WIDENED)
        stride = (stride[0], stride[1] * WIDENED)
    elif shuffle > 1:
        # torch's channel order is (channel, i, j); neighbours in memory are (j, channel).
        o, c, kh, kw = weight.shape
        weight = weight.reshape(o // shuffle**2, shuffle, shuffle, c, kh, kw).permute(1, 2, 0, 3, 4, 5).flatten(0, 2)
    packed = _columns(weight.unsqueeze(0))
    kernel = (weight.shape[2], weight.shape[3])
    return Layer(packed, weight.shape[1], kernel, stride, dilation, groups, ONE, spread, shuffle, (axes[0], axes[1]))


def pack_upsample_conv2d(
    weight: Tensor, *, scale: Pair, padding: Sides = (0, 0, 0, 0), groups: int = 1, shuffle: int = 1
) -> Layer:
    """Pack a convolution [O, C / groups, KH, KW] of an image enlarged by nearest neighbours, padded after that.

    Phase i of a row reads input rows (i + t - top) // scale of tap t: taps that meet in one input row are summed.
    """
    check_weight(weight, scale, ONE, groups, shuffle)
    require(weight.shape[0] % groups == 0, "groups", groups, f"a divisor of the weight's {weight.shape[0]} outputs")
    top, left, bottom, right = padding
    # Not `list[Tensor]()`, which torch.compile can't trace.
    scatters: list[Tensor] = []
    axes: list[Axis] = []
    for before, after, k, r in zip((top, left), (bottom, right), weight.shape[2:], scale, strict=True):
        lift = max(-(-before // r), 0)
        axis = Axis((r * lift - before, r, -lift), (r, before + after - k + 1, 1))
        rows = [[(i + t - before) // r - axis.first(i) for t in range(k)] for i in range(r)]
        scatters.append(_scatter(rows))
        axes.append(axis)
    return _pack_phases(weight, scatters, (axes[0], axes[1]), scale, groups, shuffle)


def pack_conv_transpose2d(
    weight: Tensor,
    *,
    stride: Pair = ONE,
    padding: Sides = (0, 0, 0, 0),
    output_padding: Pair = (0, 0),
    dilation: Pair = ONE,
    groups: int = 1,
    shuffle: int = 1,
) -> Layer:
    """Pack a transposed convolution's weight [C, O / groups, KH, KW] as sub-pixel phases (Shi et al., 2016).

    Phase i of a row takes the taps t with (i + top - t · dilation) divisible by the stride, in falling order.
    """
    check_weight(weight, stride, dilation, groups, shuffle)
    require(weight.shape[0] % groups == 0, "groups", groups, f"a divisor of the weight's {weight.shape[0]} inputs")
    c, o = weight.shape[0] // groups, weight.shape[1]
    weight = weight.reshape(groups, c, o, *weight.shape[2:]).transpose(1, 2).flatten(0, 1)
    top, left, bottom, right = padding
    # Not `list[Tensor]()`, which torch.compile can't trace.
    scatters: list[Tensor] = []
    axes: list[Axis] = []
    each = zip((top, left), (bottom, right), weight.shape[2:], stride, dilation, output_padding, strict=True)
    for before, after, k, s, d, extra in each:
        reach = d * (k - 1) + 1
        most, lift = -(-reach // s), max(-(before // s), 0)
        # Tap t of phase i reads `back` rows before the newest row that the phase sees.
        back = [[(t * d - (i + before) % s) for t in range(k)] for i in range(s)]
        rows = [[most - 1 - b // s if b % s == 0 else None for b in phase] for phase in back]
        scatters.append(_scatter(rows, most))
        start = (before + s * lift, s, 1 - most - lift)
        axes.append(Axis(start, (s, reach - s - before - after + extra, 1)))
    return _pack_phases(weight, scatters, (axes[0], axes[1]), stride, groups, shuffle)


def check_weight(weight: Tensor, stride: Pair, dilation: Pair, groups: int, shuffle: int) -> None:
    """Raise BackendError for a weight the kernels can't take, or for steps, groups or a shuffle below one."""
    require_tensor("weight", weight)
    require(weight.ndim == 4, "weight", f"of shape {tuple(weight.shape)}", "4 axes")
    require(weight.dtype in FLOATS, "weight", weight.dtype, ", ".join(map(str, FLOATS)))
    if weight.numel() == 0 or min(*stride, *dilation) < 1:
        raise BackendError(
            f"weight of shape {tuple(weight.shape)}, stride or scale {stride}, dilation {dilation}: no size may be zero"
        )
    require(groups >= 1, "groups", groups, "1 and more")
    require(shuffle >= 1, "epilogue.shuffle", shuffle, "1 and more")


def dense(weight: Tensor, groups: int) -> Tensor:
    """Write a grouped weight [O, C / groups, KH, KW] as an ungrouped one with zeros."""
    o, c, kh, kw = weight.shape
    full = weight.new_zeros(groups, o // groups, groups, c, kh, kw)
    for group, part in enumerate(weight.reshape(groups, o // groups, c, kh, kw)):
        full[group, :, group] = part
    return full.reshape(o, groups * c, kh, kw)


def _widened(weight: Tensor, step: int) -> Tensor:
    """Compute several neighbouring pixels as columns of one: row (j, o) is the weight moved right by j steps."""
    o, c, kh, kw = weight.shape
    wide = weight.new_zeros(WIDENED, o, c, kh, kw + (WIDENED - 1) * step)
    for j in range(WIDENED):
        wide[j, ..., j * step : j * step + kw] = weight
    return wide.flatten(0, 1)


def _scatter(rows: Sequence[Sequence[int | None]], taps: int | None = None) -> Tensor:
    """Build [phases, taps of a phase, taps of the kernel]: ones where a kernel's tap falls on a phase's tap."""
    most = taps if taps is not None else 1 + max(m for row in rows for m in row if m is not None)
    scatter = torch.zeros(len(rows), most, len(rows[0]))
    for i, row in enumerate(rows):
        for t, m in enumerate(row):
            if m is not None:
                scatter[i, m, t] = 1
    return scatter


def _pack_phases(
    weight: Tensor, scatters: list[Tensor], axes: tuple[Axis, Axis], scale: Pair, groups: int, shuffle: int
) -> Layer:
    """Pack a layer of several phases: as separate products, or as one over the union of their windows.

    One product reads the input once but multiplies by zeros; it wins where a phase has few columns.
    """
    require(weight.shape[0] % shuffle**2 == 0, "epilogue.shuffle", shuffle, f"r with r² dividing {weight.shape[0]}")
    if groups > 1 and shuffle > 1:
        weight, groups = dense(weight, groups), 1
    if scale != ONE and groups == 1 and shuffle == 1:
        starts = [[axis.first(i) for i in range(s)] for axis, s in zip(axes, scale, strict=True)]
        united = [_united(scatter, first) for scatter, first in zip(scatters, starts, strict=True)]
        count = scale[0] * scale[1]
        apart = count * scatters[0].shape[1] * scatters[1].shape[1] * _rounded(weight.shape[0])
        together = united[0].shape[1] * united[1].shape[1] * _rounded(weight.shape[0] * count)
        if together <= apart:
            phases = _split(weight, united[0], united[1]).flatten(0, 1)
            merged = tuple(Axis((0, 1, min(first)), axis.extent) for axis, first in zip(axes, starts, strict=True))
            kernel = (united[0].shape[1], united[1].shape[1])
            packed = _columns(phases.unsqueeze(0))
            layout = (merged[0], merged[1])
            return Layer(packed, weight.shape[1], kernel, ONE, ONE, groups, ONE, scale, 1, layout)
    if shuffle > 1:
        o, c, kh, kw = weight.shape
        weight = weight.reshape(o // shuffle**2, shuffle, shuffle, c, kh, kw).permute(1, 2, 0, 3, 4, 5).flatten(0, 2)
    packed = _columns(_split(weight, scatters[0], scatters[1]))
    kernel = (scatters[0].shape[1], scatters[1].shape[1])
    return Layer(packed, weight.shape[1], kernel, ONE, ONE, groups, scale, (shuffle, shuffle), shuffle, axes)


def _united(scatter: Tensor, first: list[int]) -> Tensor:
    """Place the taps of all phases on one window that begins at the least of their first positions."""
    phases, taps, kernel = scatter.shape
    shifts = [position - min(first) for position in first]
    united = scatter.new_zeros(phases, taps + max(shifts), kernel)
    for i, shift in enumerate(shifts):
        united[i, shift : shift + taps] = scatter[i]
    return united


def _split(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sum a weight's taps by phase: [phases, O, C, taps of rows, taps of columns], rounded once."""
    rows, columns = (scatter.to(weight.device, torch.float64) for scatter in (rows, columns))
    split = torch.einsum("ocyx,imy,jnx->ijocmn", weight.double(), rows, columns)
    return narrowed(split.flatten(0, 1), weight.dtype)


def _columns(phases: Tensor) -> Tensor:
    """Lay [phases, O, C, KH, KW] out as [phases, O, KH · KW · C]."""
    return phases.permute(0, 1, 3, 4, 2).flatten(2).contiguous()


def _rounded(columns: int) -> int:
    return -(-columns // LEAST_COLUMNS) * LEAST_COLUMNS
