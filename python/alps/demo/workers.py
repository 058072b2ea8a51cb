"""Divides the training of the demo among processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from alps.demo.experiment import Experiment, Settings, training_environment

Result = TypeVar("Result")


class Workers:
    """Processes that share the calls of an experiment's methods; if `processes` is 1, this process makes them.

    Attributes:
        settings: The settings of the experiment.
        processes: How many there are.
        advance: A function that is called with a number of finished steps, in any thread.
    """

    def __init__(self, settings: Settings, processes: int) -> None:
        """Starts the processes, which prepare the experiment meanwhile."""
        self.settings = settings
        self.processes = processes
        self.advance: Callable[[float], object] = lambda steps: None
        self._others = multiprocessing.active_children()
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, context, initializer=_exit_with_parent)
            with _interrupts_ignored():
                for _ in range(processes):
                    self._pool.submit(_prepare, settings)

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        if self._pool is not None:
            for child in multiprocessing.active_children():
                if child not in self._others:
                    child.kill()
            self._pool.shutdown(cancel_futures=True)

    def share(
        self, experiment: Experiment, method: Callable[..., Result], calls: list[Any], steps: float
    ) -> list[Result]:
        """Makes calls of a method of the experiment; returns their results in order.

        Args:
            experiment: The experiment of this process, which makes the calls if there are no other processes.
            method: The method, unbound.
            calls: The arguments of each call.
            steps: The mean number of steps of a call.

        Raises:
            ChildProcessError: A process was killed.
        """
        if self._pool is None:
            return [method(experiment, *arguments) for arguments in calls]
        futures = [self._pool.submit(_call, self.settings, method, arguments) for arguments in calls]
        for future in futures:
            future.add_done_callback(lambda _: self.advance(steps))
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that helped to train was killed before it was done, perhaps for want of memory; with a "
                "single seed there is none (alps demo --seeds 1)"
            ) from error


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignores Ctrl-C inside the block; processes that start there ignore it for good.

    A terminal sends Ctrl-C to all processes. Only this one must react: it ends the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change what a signal does
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _exit_with_parent() -> None:
    """Lets a worker end when its parent is killed; otherwise it would wait for calls for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(settings: Settings) -> None:
    _experiment(settings)


def _call(settings: Settings, method: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    with training_environment():
        return method(_experiment(settings), *arguments)


@cache
def _experiment(settings: Settings) -> Experiment:
    return Experiment.prepare(settings, lambda: None)
