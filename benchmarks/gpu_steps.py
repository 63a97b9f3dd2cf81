"""Steps in processes of their own: one that raises, hangs, dies or spoils its CUDA context costs no other step."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

# A new process imports torch and opens the device within its first step.
START_S = 60.0
# A process in the middle of a kernel that never ends may outlive its kill; the run does not wait for it.
KILL_S = 10.0
NO_TIME = "no time was left"


@dataclass(frozen=True)
class Step:
    """A call of a module's function, which another process finds by its name, and the seconds it may take."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a step: its result, or the reason why it has none."""

    result: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Worker:
    """A process that runs steps, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def stop(self) -> None:
        """Kill the process with everything it started."""
        self.pipe.close()
        pid = self.process.pid
        with suppress(ProcessLookupError, PermissionError):
            if pid is not None and os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(KILL_S)


def run_steps(
    steps: Sequence[Step], deadline: float, recover: Callable[[], None], *, workers: int = 1
) -> Iterator[tuple[Step, Outcome]]:
    """Run steps in their order by a number of processes, and yield each as it ends.

    Args:
        deadline: of `time.monotonic`; a step that runs then is killed, and none begins after it.
        recover: called in the process after a step has failed; where it raises, a new process takes the next step.
    """
    waiting: queue.SimpleQueue[Step] = queue.SimpleQueue()
    for step in steps:
        waiting.put(step)
    ended: queue.SimpleQueue[tuple[Step, Outcome]] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_drive, args=(waiting, ended, deadline, recover), daemon=True)
        for _ in range(min(workers, len(steps)))
    ]
    for thread in threads:
        thread.start()
    for _ in steps:
        yield ended.get()
    for thread in threads:
        thread.join()


def _drive(
    waiting: queue.SimpleQueue[Step],
    ended: queue.SimpleQueue[tuple[Step, Outcome]],
    deadline: float,
    recover: Callable[[], None],
) -> None:
    """Take steps until there are none, each to a process that is replaced where it can't go on."""
    worker: Worker | None = None
    while True:
        try:
            step = waiting.get_nowait()
        except queue.Empty:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            ended.put((step, Outcome(error=NO_TIME)))
            continue
        allowed = step.seconds + (START_S if worker is None else 0.0)
        if worker is None:
            try:
                worker = _start(recover)
            except OSError as error:
                ended.put((step, Outcome(error=f"no process could be started: {error}")))
                continue
        outcome, healthy = _ask(worker, step, min(allowed, left))
        if not healthy:
            worker.stop()
            worker = None
        ended.put((step, outcome))
    if worker is not None:
        worker.stop()


def _start(recover: Callable[[], None]) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, recover))
    process.start()
    # Its end closes with the process, which is how its death is seen.
    theirs.close()
    return Worker(process, ours)


def _ask(worker: Worker, step: Step, seconds: float) -> tuple[Outcome, bool]:
    """Have a step run; the process is healthy where it has answered and says so."""
    try:
        worker.pipe.send((step.function, step.arguments))
        if not worker.pipe.poll(seconds):
            return Outcome(error=f"it was stopped after {seconds:.0f} s"), False
        result, error, healthy = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(KILL_S)
        return Outcome(error=f"its process died, exit code {worker.process.exitcode}"), False
    return Outcome(result, error), healthy


def _serve(pipe: Connection, recover: Callable[[], None]) -> None:
    """Run what comes through the pipe, in a process group of its own, until the pipe closes."""
    os.setsid()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        answer = _answer(function, arguments)
        healthy = True
        if answer.error is not None:
            try:
                recover()
            # Whatever it is, this process is of no more use, and says so.
            except Exception:  # noqa: BLE001
                healthy = False
        pipe.send((answer.result, answer.error, healthy))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(function(*arguments))
    # A step that fails is a finding about what it measures; the others go on.
    except Exception as error:  # noqa: BLE001
        said = str(error).strip().splitlines() or [""]
        return Outcome(error=f"{type(error).__name__}: {said[0][:300]}")
