"""Passes: each takes a graph and gives one with the same outputs and less to do; `concat_placements` gives a layout.

`folding` moves arithmetic on constants to load time, `fusion` joins ops into one node and takes them apart again,
`resizing` turns inexact interpolations into convolutions, `narrow` gives convolutions of few outputs more, `shuffling`
adds before a pixel shuffle, `branches` computes residual branches in reduced precision, and `placement` says which
values can be written straight into the buffer of the concat that reads them.
"""

from tilefuse.passes.branches import reduce_branches
from tilefuse.passes.folding import fold_affine, fold_batch_norm, fold_constants, prune
from tilefuse.passes.fusion import fuse_epilogues, merge_pads, unfuse
from tilefuse.passes.narrow import widen_narrow_layers
from tilefuse.passes.placement import Placement, concat_placements
from tilefuse.passes.resizing import lower_resizes
from tilefuse.passes.shuffling import add_before_shuffle

__all__ = [
    "Placement",
    "add_before_shuffle",
    "concat_placements",
    "fold_affine",
    "fold_batch_norm",
    "fold_constants",
    "fuse_epilogues",
    "lower_resizes",
    "merge_pads",
    "prune",
    "reduce_branches",
    "unfuse",
    "widen_narrow_layers",
]
