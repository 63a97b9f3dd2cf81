"""Reshape and Transpose without data: exporters write pixel shuffles, group norms and squeezes as chains of them.

A `View` says, as einops does, which part of which base dimension every dimension of the chain's end is made of. Only
when an op needs the tensor is the view turned into ops of the vocabulary, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_shapes import Dims, element_count
from tilefuse.importers.onnx_sizes import Dim, Number, Size, divide, floor
from tilefuse.ops import Op, PixelShuffle, PixelUnshuffle, Reshape, ShuffleOrder

COPIES = -1


@dataclass(frozen=True)
class Factor:
    """`size` steps of `stride` elements along the base's dimension `dim`; COPIES marks a repetition."""

    dim: int
    size: Dim
    stride: int = 1


Group = tuple[Factor, ...]
_Image = tuple[Dim, int, Dim, Dim]
_Split = Callable[[Factor, Number, Dim | None], tuple[Factor, Factor] | None]
_Expect = Callable[[_Image, int, ShuffleOrder], tuple[Group, ...] | None]


@dataclass(frozen=True)
class Layout:
    """How the dimensions of a view are made of its base's; each is a group of factors, slowest first."""

    base: Dims
    groups: tuple[Group, ...]

    @property
    def shape(self) -> Dims:
        """Sizes of the view."""
        return tuple(_size(group) for group in self.groups)

    def transposed(self, order: Sequence[int]) -> Layout:
        """Permute the dimensions."""
        return Layout(self.base, tuple(self.groups[i] for i in order))

    def reshaped(self, shape: Sequence[Dim | None]) -> Layout | None:
        """Regroup the factors to a new shape, splitting them where needed; None when the borders do not meet.

        A None in the shape takes what the sizes before and after it leave.
        """
        queue = [factor for group in self.groups for factor in group]
        cut = shape.index(None) if None in shape else len(shape)
        before = _take(queue, shape[:cut], _split_slow)
        queue.reverse()
        after = _take(queue, list(reversed(shape[cut + 1 :])), _split_fast)
        queue.reverse()
        if before is None or after is None or (queue and cut == len(shape)):
            return None
        rest = [queue] if cut < len(shape) else []
        groups = [*before, *rest, *([*reversed(group)] for group in reversed(after))]
        return Layout(self.base, tuple(_merge(group) for group in groups))

    def expanded(self, shape: Dims) -> Layout | None:
        """Broadcast to a shape; None when a size that is not 1 differs."""
        groups = ((),) * (len(shape) - len(self.groups)) + self.groups
        result: list[Group] = []
        for group, target in zip(groups, shape, strict=True):
            if _size(group) == target or target == 1:
                result.append(group)
            elif group:
                return None
            else:
                result.append((Factor(COPIES, target, 0),))
        return Layout(self.base, tuple(result))

    def tiled(self, repeats: Sequence[int]) -> Layout:
        """Repeat whole dimensions."""
        copies = [((Factor(COPIES, count, 0),) if count > 1 else ()) for count in repeats]
        return Layout(self.base, tuple(copy + group for copy, group in zip(copies, self.groups, strict=True)))

    def channels(self) -> list[int] | None:
        """Source channel of every channel, where the view only selects channels of an image; else None."""
        plain = whole(self.base).groups
        if len(self.base) != 4 or len(self.groups) != 4 or (self.groups[0], *self.groups[2:]) != (plain[0], *plain[2:]):
            return None
        indices = [0]
        for factor in self.groups[1]:
            if factor.dim not in (1, COPIES) or not isinstance(factor.size, int):
                return None
            indices = [i + step * factor.stride for i in indices for step in range(factor.size)]
        return indices


def whole(base: Dims) -> Layout:
    """View a tensor as it is."""
    return Layout(base, tuple((Factor(i, size),) if size != 1 else () for i, size in enumerate(base)))


def recognise(layout: Layout) -> Op | None:
    """Find the one op that rearranges the base so, or None."""
    shuffle = _shuffle(layout)
    if shuffle is not None:
        return shuffle
    flat = [factor for group in layout.groups for factor in group]
    if any(factor.dim == COPIES for factor in flat):
        return None
    if sorted(flat, key=lambda factor: (factor.dim, -factor.stride)) != flat:
        return None
    return reshape_op(layout.base, layout.shape)


def reshape_op(base: Dims, shape: Dims) -> Reshape | None:
    """Write a reshape with 0 for a size kept in place and -1 for the one other unknown; None when more are unknown."""
    sizes: list[int] = []
    for position, size in enumerate(shape):
        if isinstance(size, Size) or size == 0:
            kept = position < len(base) and size == base[position]
            sizes.append(0 if kept else -1)
        else:
            sizes.append(size)
    if 0 in shape and -1 in sizes:
        return None
    if not any(isinstance(size, Size) for size in shape) and element_count(shape) != element_count(base):
        return None
    return Reshape(tuple(sizes)) if sizes.count(-1) <= 1 else None


def _shuffle(layout: Layout) -> Op | None:
    """Match pixel shuffle or unshuffle, in either order of channels."""
    if len(layout.base) != 4 or len(layout.groups) != 4:
        return None
    _, channels, height, width = layout.base
    if not isinstance(channels, int):
        return None
    made: tuple[tuple[Group, type[PixelShuffle | PixelUnshuffle], _Expect], ...] = (
        (layout.groups[2], PixelShuffle, _as_shuffle),
        (layout.groups[1], PixelUnshuffle, _as_unshuffle),
    )
    orders: tuple[ShuffleOrder, ...] = ("crd", "dcr")
    for group, kind, expect in made:
        for size in {factor.size for factor in group if factor.dim != COPIES}:
            for order in orders:
                if isinstance(size, int) and layout.groups == expect(
                    (layout.base[0], channels, height, width), size, order
                ):
                    return kind(size, order)
    return None


def _as_shuffle(base: _Image, factor: int, order: ShuffleOrder) -> tuple[Group, ...] | None:
    batch, channels, height, width = base
    if channels % (factor * factor):
        return None
    made = channels // (factor * factor)
    if order == "crd":
        kept, row, column = Factor(1, made, factor * factor), Factor(1, factor, factor), Factor(1, factor, 1)
    else:
        kept, row, column = Factor(1, made, 1), Factor(1, factor, factor * made), Factor(1, factor, made)
    return _groups([Factor(0, batch)], [kept], [Factor(2, height), row], [Factor(3, width), column])


def _as_unshuffle(base: _Image, factor: int, order: ShuffleOrder) -> tuple[Group, ...] | None:
    batch, channels, height, width = base
    rows, columns = floor(divide(height, factor)), floor(divide(width, factor))
    if not isinstance(rows, int | Size) or not isinstance(columns, int | Size):
        return None
    kept, row, column = Factor(1, channels), Factor(2, factor, 1), Factor(3, factor, 1)
    depth = [kept, row, column] if order == "crd" else [row, column, kept]
    return _groups([Factor(0, batch)], depth, [Factor(2, rows, factor)], [Factor(3, columns, factor)])


def _groups(*groups: Sequence[Factor]) -> tuple[Group, ...]:
    return tuple(_merge([factor for factor in group if factor.size != 1]) for group in groups)


def _size(group: Group) -> Dim:
    total: Number = 1
    for factor in group:
        total = total * factor.size
    if not isinstance(total, int | Size):
        raise ModelError(f"a dimension of {total} is not whole")
    return total


def _merge(group: Sequence[Factor]) -> Group:
    """Join neighbours that are one run of the base."""
    merged: list[Factor] = []
    for factor in group:
        last = merged[-1] if merged else None
        if (
            last
            and last.dim == factor.dim
            and isinstance(factor.size, int)
            and last.stride == factor.stride * factor.size
        ):
            joined = last.size * factor.size
            if isinstance(joined, int | Size):
                merged[-1] = Factor(factor.dim, joined, factor.stride)
                continue
        merged.append(factor)
    return tuple(merged)


def _quotient(need: Number, size: Dim) -> Number | None:
    """Give need / size where it is whole for every image."""
    try:
        rest = divide(need, size)
    except ModelError:
        return None
    if isinstance(rest, Size):
        return rest if all(k.denominator == 1 for _, k in rest.terms) else None
    return rest if isinstance(rest, int) and rest >= 1 else None


def _take(queue: list[Factor], shape: Sequence[Dim | None], split: _Split) -> list[list[Factor]] | None:
    """Take factors from the queue's head until each size is filled."""
    groups = []
    for position, target in enumerate(shape):
        group: list[Factor] = []
        need: Number = target or 0
        while need != 1:
            if not queue:
                return None
            head = queue.pop(0)
            rest = _quotient(need, head.size)
            if rest is None:
                following = shape[position + 1] if position + 1 < len(shape) else None
                parts = split(head, need, following)
                if parts is None:
                    return None
                head, left = parts
                queue.insert(0, left)
                rest = 1
            group.append(head)
            need = rest
        groups.append(group)
    return groups


def _split_slow(factor: Factor, need: Number, following: Dim | None) -> tuple[Factor, Factor] | None:
    """Split off the `need` slowest steps, and give them and what is left."""
    size = factor.size
    if isinstance(size, int) and isinstance(need, int) and need > 0 and size % need == 0:
        inner = size // need
    elif isinstance(size, Size) and isinstance(need, Size) and isinstance(following, int) and following > 1:
        if floor(divide(size, following)) != need:
            return None
        inner = following
    else:
        return None
    return Factor(factor.dim, need, factor.stride * inner), Factor(factor.dim, inner, factor.stride)


def _split_fast(factor: Factor, need: Number, following: Dim | None) -> tuple[Factor, Factor] | None:
    """Split off the `need` fastest steps, and give them and what is left."""
    del following
    left = floor(divide(factor.size, need)) if isinstance(need, int) and need > 0 else 0
    if not isinstance(need, int) or not isinstance(left, int | Size) or left == 0:
        return None
    if isinstance(left, int) and left * need != factor.size:
        return None
    return Factor(factor.dim, need, factor.stride), Factor(factor.dim, left, factor.stride * need)
