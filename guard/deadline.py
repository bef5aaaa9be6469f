"""How long an operation may still take, and running it no longer than that.

An operation asks with `remaining_time()`, and can pass the answer on: as the timeout of an HTTP client, or as
`statement_timeout` of a database session.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

from guard.errors import OperationTimeoutError

T = TypeVar("T")

_deadline: ContextVar[float | None] = ContextVar("guard_deadline", default=None)


def remaining_time() -> float | None:
    """How many seconds the operation that runs here may still take; 0 when they are over, None without a limit."""
    moment = _deadline.get()
    return None if moment is None else max(0.0, moment - time.monotonic())


@contextlib.contextmanager
def limit(seconds: float | None) -> Iterator[float | None]:
    """Let what runs in the block know that it has so many seconds, or fewer if a block around it has fewer.

    Yields the seconds that are left. It does not end the block: that is for the operation, `run`, or asyncio to do.
    """
    left = remaining_time()
    if seconds is not None and (left is None or seconds < left):
        left = seconds
        token = _deadline.set(time.monotonic() + seconds)
        try:
            yield left
        finally:
            _deadline.reset(token)
    else:
        yield left


def run(function: Callable[..., T], arguments: Sequence[Any], keywords: Mapping[str, Any], seconds: float) -> T:
    """Call the function in another thread and wait no longer than `seconds` for it.

    Raises OperationTimeoutError then: the caller is free, the thread goes on, and what it returns is discarded. The
    function sees the caller's context variables. Threads are used again; at most one waits for each caller.
    """
    context = copy_context()
    context.run(_deadline.set, time.monotonic() + seconds)
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    return worker.call(context, function, arguments, keywords, seconds)  # type: ignore[no-any-return]


class _Worker:
    """A thread that runs one function at a time. Two locks hand over the task and the result: nothing is cheaper."""

    __slots__ = ("_done", "_go", "_outcome", "_task")

    def __init__(self) -> None:
        self._task: tuple[Context, Callable[..., Any], Sequence[Any], Mapping[str, Any]] | None = None
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._go = threading.Lock()
        self._done = threading.Lock()
        self._go.acquire()
        self._done.acquire()
        threading.Thread(target=self._serve, name="guard-operation", daemon=True).start()

    def call(
        self,
        context: Context,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        seconds: float,
    ) -> Any:
        self._task = (context, function, arguments, keywords)
        self._go.release()
        answered = False
        try:
            answered = self._done.acquire(timeout=max(0.0, seconds))
        finally:
            if not answered:  # timed out, or the caller was interrupted: its thread ends with the function
                self._task = None
                self._go.release()
        if not answered:
            raise OperationTimeoutError(f"The operation took longer than the {seconds:g} s that it had.")
        assert self._outcome is not None  # noqa: S101  # the lock says so
        result, error = self._outcome
        self._task = self._outcome = None
        _idle.append(self)
        if error is not None:
            try:
                raise error
            finally:
                del error  # a traceback that names itself is a cycle
        return result

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            if self._task is None:
                return
            context, function, arguments, keywords = self._task
            try:
                self._outcome = (context.run(function, *arguments, **keywords), None)
            except BaseException as error:
                self._outcome = (None, error)
            del context, function, arguments, keywords
            self._done.release()


_idle: deque[_Worker] = deque(maxlen=64)

# threads do not survive a fork
os.register_at_fork(after_in_child=_idle.clear)
