"""Work in threads: its results come in order, and little is taken ahead."""

from __future__ import annotations

import threading

import pytest

from tilefuse.ordered import in_order


def test_results_come_in_order_and_few_are_held() -> None:
    taken: list[int] = []
    first = threading.Event()

    def items() -> object:
        for number in range(60):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        if number == 0:
            first.wait(10)
        return 10 * number

    made = in_order(items(), work, 2)
    releasing = threading.Timer(0.1, first.set)
    releasing.start()
    assert next(made) == 0
    assert len(taken) < 30
    assert list(made) == [10 * number for number in range(1, 60)]
    releasing.join()


def test_an_error_of_the_work_goes_on() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order([1, 0, 2], lambda number: 1 / number, 2))
