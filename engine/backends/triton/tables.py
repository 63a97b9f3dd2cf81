"""Tables of a resize, as the resize kernel reads them."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from tilefuse.ops import Resize

Tables = tuple[Tensor, Tensor, Tensor, Tensor]


def resize_tables(op: Resize, height: int, width: int) -> Tables:
    """Compute which rows and columns a resize of height x width reads, int32 [taps, size], with float32 weights.

    The order is rows, their weights, columns, their weights. The weights come from exact fractions, so they are the
    same bits for every pixel of the same phase.
    """
    made_h, made_w = op.output_size(height, width)
    scales = op.scale or (Fraction(made_h, height), Fraction(made_w, width))
    rows, row_weights = op.samples(height, made_h, scales[0])
    columns, column_weights = op.samples(width, made_w, scales[1])
    tables = (rows.int(), row_weights.float(), columns.int(), column_weights.float())
    return tables[0].contiguous(), tables[1].contiguous(), tables[2].contiguous(), tables[3].contiguous()
