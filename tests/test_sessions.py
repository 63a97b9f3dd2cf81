"""Compiled sessions: compiled once, the last few kept, given up when told to."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import tilefuse
from tilefuse import selection
from tilefuse.backends import registry
from tilefuse.backends.base import Session
from tilefuse.measurement import Subject
from tilefuse.sessions import SessionCache


def test_the_last_few_are_kept_and_forgotten_ones_compiled_again() -> None:
    compiled: list[int] = []

    def compile_session(key: int) -> Session:
        compiled.append(key)
        return cast(Any, f"session {key}")

    sessions: SessionCache[int] = SessionCache(compile_session, capacity=2)
    assert [sessions.get(key) for key in (1, 2, 1)] == ["session 1", "session 2", "session 1"]
    sessions.get(3)
    sessions.get(1)
    sessions.get(2)
    assert compiled == [1, 2, 3, 2]
    sessions.forget(lambda key: key == 1)
    sessions.get(2)
    sessions.get(1)
    assert compiled == [1, 2, 3, 2, 1]


def forked(work: Callable[[], str]) -> str:
    """Run work in a forked process and return what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whoever waits for ever in a library hears no handler.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            said = work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return pipe.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_told_that_the_threads_stayed_behind() -> None:
    cache: SessionCache[str] = SessionCache(lambda key: key)  # type: ignore[arg-type,return-value]
    assert forked(lambda: str(cache.get("a"))) == "a"
    assert cache.get("a") == "a"
    for key in ("a", "b"):
        assert forked(lambda key=key: str(cache.get(key))).startswith("UsageError: the engine ran in process")  # type: ignore[misc]
    assert cache.get("b") == "b"


def brightened(engine: tilefuse.Engine) -> str:
    """Run a picture that two threads would share, and say how many did and what came out."""
    result = engine(np.arange(200 * 200 * 3, dtype=np.uint8).reshape(200, 200, 3))
    return f"{torch.get_num_threads()} thread, {hashlib.sha256(result).hexdigest()}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("backend", ["torch_eager", "ncnn"])
def test_a_forked_process_computes_in_one_thread(backend: str) -> None:
    """OpenMP's other threads stayed in the parent, where loading and running had started them."""
    if registry.get(backend).available():
        pytest.skip(str(registry.get(backend).available()))
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 3, padding=1)
    engine, idle = (tilefuse.load(network, backend=backend, measure_seconds=0) for _ in range(2))
    expected = brightened(engine).partition(", ")[2]

    def load_and_run() -> str:
        return brightened(tilefuse.load(network, backend=backend, measure_seconds=0))

    before = torch.get_num_threads()
    assert forked(load_and_run) == f"1 thread, {expected}"
    assert forked(lambda: brightened(idle)) == f"1 thread, {expected}"
    assert torch.get_num_threads() == before


@pytest.mark.timeout(20)
def test_a_signal_handler_may_run_the_engine_while_the_main_thread_compiles() -> None:
    """It runs in the main thread, which would wait for itself."""

    def compile_session(key: str) -> Session:
        if key == "a":
            signal.raise_signal(signal.SIGUSR1)
        return cast(Any, f"session {key}")

    sessions: SessionCache[str] = SessionCache(compile_session)
    handled: list[object] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(sessions.get("b")))
    try:
        assert sessions.get("a") == "session a"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == ["session b"]
    assert sessions.get("b") == "session b"


@pytest.mark.timeout(20)
def test_a_signal_handler_may_ask_who_serves_while_the_main_thread_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tilefuse.load(nn.Conv2d(3, 3, 1), backend="torch_eager")
    subject, asked = Subject(1, 8, 8, "uint8"), list[object]()
    recall = selection.recall

    def interrupted(*arguments: Any) -> Any:
        if not asked:
            asked.append(None)
            asked.append(engine.choices.look(subject).servings)
        return recall(*arguments)

    monkeypatch.setattr(selection, "recall", interrupted)
    assert engine.choices.settle(subject).servings == asked[1]
