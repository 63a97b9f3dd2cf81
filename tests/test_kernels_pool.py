"""Pooling: windows, padding by side, dilation, rounding up, and the counts of averages."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.kernel_cases import check_launcher, check_refusals, image
from tilefuse.errors import BackendError
from tilefuse.kernels.pool import pool, pool_ref
from tilefuse.ops import Pool2d

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
POOLS = [
    ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((3, 2), (2, 3), (0, 1, 1, 0), (1, 2)),
    ((1, 5), (1, 1), (0, 2, 0, 2), (1, 1)),
]


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), POOLS)
def test_windows(kind: str, kernel: object, stride: object, padding: object, dilation: object) -> None:
    for count in (True, False) if kind == "avg" else (True,):
        launch, reference = (
            partial(
                f, kind=kind, kernel=kernel, stride=stride, padding=padding, dilation=dilation, count_include_pad=count
            )
            for f in (pool, pool_ref)
        )
        check_launcher(launch, reference, image(2, 7, 6, 3), max_abs=1e-6)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("count", [True, False])
def test_rounding_up_is_the_definition(kind: str, count: bool) -> None:
    for size in ((7, 9), (8, 5), (3, 63)):
        x = image(1, *size, 2)
        for kernel, stride, padding in (((3, 3), (2, 2), (1, 1, 1, 1)), ((3, 2), (2, 3), (0, 1, 1, 0))):
            op = Pool2d(kind, kernel, stride, padding, ceil_mode=True, count_include_pad=count)  # type: ignore[arg-type]
            expected = op.apply(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            made_size = (expected.shape[1], expected.shape[2])
            made = pool(x, kind, kernel, stride, padding, size=made_size, count_include_pad=count)
            assert (made - expected).abs().max() < 1e-6


def test_half_is_summed_in_single_precision_and_nan_comes_out() -> None:
    x = image(1, 6, 6, 3, dtype=torch.float16)
    assert torch.equal(pool(x, "max", (2, 2), (2, 2)), pool_ref(x, "max", (2, 2), (2, 2)))
    assert (pool(x, "avg", (3, 3), (1, 1)) - pool_ref(x, "avg", (3, 3), (1, 1))).abs().max() < 1e-3
    x[0, 2, 2, 1] = torch.nan
    assert pool(x, "max", (2, 2), (2, 2)).isnan().sum() == 1


def test_bad_input_is_named() -> None:
    check_refusals("pool", partial(pool, kind="max", kernel=(2, 2), stride=(1, 1)), image(1, 2, 2, 4))
    with pytest.raises(BackendError, match="median of"):
        pool(image(1, 2, 3, 1), "median", (2, 2), (1, 1))
    with pytest.raises(BackendError, match=r"x is 2x3; at least one window of \(3, 3\)"):
        pool(image(1, 2, 3, 1), "max", (3, 3), (1, 1))
