"""Calls of the experiment, shared with processes beside this one."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from alps.demo.experiment import Experiment
from alps.demo.settings import Settings
from alps.demo.surroundings import one_thread, quiet

Result = TypeVar("Result")


class Team:
    """This process, and helpers that have the same experiment.

    Which process makes a call changes nothing but when it returns.

    Attributes:
        experiment: This process's own.
    """

    def __init__(
        self,
        experiment: Experiment,
        processes: int,
        pool: ProcessPoolExecutor | None,
        advance: Callable[[int], object],
    ) -> None:
        self.experiment = experiment
        self._processes = processes
        self._pool = pool
        self._advance = advance

    @classmethod
    @contextmanager
    def gather(cls, settings: Settings, processes: int, advance: Callable[[int], object]) -> Iterator["Team"]:
        """A team; however this is left, the helpers are gone afterwards.

        Args:
            settings: Of the experiment.
            processes: This one and the helpers.
            advance: Called with a number of steps that have been made, in any thread.

        Raises:
            ArgumentError: This Python comes without the source of its library.
        """

        def prepared() -> Experiment:
            return Experiment.prepare(settings, lambda: advance(1))

        if processes == 1:
            yield cls(prepared(), processes, None, advance)
            return
        others = multiprocessing.active_children()
        pool = ProcessPoolExecutor(processes - 1, multiprocessing.get_context("spawn"), _end_with_parent)
        try:
            with _interrupts_held():
                for _ in range(processes - 1):
                    pool.submit(_get_ready, settings)
            yield cls(prepared(), processes, pool, advance)
        finally:
            for helper in multiprocessing.active_children():
                if helper not in others:
                    helper.kill()
            pool.shutdown(cancel_futures=True)

    def share(self, method: Callable[..., Result], calls: Sequence[tuple[Any, ...]]) -> list[Result]:
        """Makes calls of a method of the experiment; of two processes, this one makes every second.

        Args:
            method: The method, not yet bound.
            calls: The arguments of each call.

        Returns:
            What they return, in their order.

        Raises:
            Exception: What a call raised, wherever it was made.
            ChildProcessError: A helper was killed.
        """
        futures = {
            number: self._pool.submit(_call, self.experiment.settings, method, call)
            for number, call in enumerate(calls)
            if self._pool is not None and number % self._processes
        }
        for future in futures.values():
            future.add_done_callback(self._count)
        own = {
            number: method(self.experiment, *call)
            for number, call in enumerate(calls)
            if number not in futures
        }
        try:
            helped = {number: future.result()[0] for number, future in futures.items()}
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that helped to train was killed before it was done, perhaps for want of memory; with a "
                "single seed there is none (alps demo --seeds 1)"
            ) from error
        made = own | helped
        return [made[number] for number in range(len(calls))]

    def _count(self, future: Future[tuple[Any, int]]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._advance(future.result()[1])


def cores() -> int:
    """How many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that start meanwhile are deaf to Ctrl-C, which a terminal sends to all; this one gets it afterwards."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else it would be started meanwhile, and lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A helper waits for calls for ever, so it has to notice if who makes them was killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _get_ready(settings: Settings) -> None:
    _experiment(settings)


@cache
def _experiment(settings: Settings) -> Experiment:
    return Experiment.prepare(settings, lambda: None)


def _call(settings: Settings, method: Callable[..., Result], call: tuple[Any, ...]) -> tuple[Result, int]:
    """What a call returns, and how many steps it made."""
    steps = count()
    with one_thread(), quiet():
        result = method(replace(_experiment(settings), tick=lambda: next(steps)), *call)
    return result, next(steps)
