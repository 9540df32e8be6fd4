"""Stages of work in threads of their own, with short queues between them: read, encode, decode; the caller writes.

Torch, GDAL and zlib let go of the interpreter while they compute, so a window is read and unpacked while the one
before it is encoded. Results, their order and the error that ends them are those of a plain loop; ``depth=0`` is that
loop. At most ``depth`` items wait before each stage, so memory does not follow the length of the work.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from samgraft.adapters.backbones.base import Promptable
from samgraft.errors import ConfigError

Stage = Callable[[Any], Any]
"""Makes one item of one item."""

DEPTH = 2
"""Items that may wait before each stage."""
ENCODE_TOKENS = {"cpu": 2**11, "cuda": 2**15}
"""Image tokens encoded together: on a CPU eight tiles of graft-tiny at 128 px, or one of SAM-B at 1024 px."""
_END = object()


def encode_batch(backbone: Promptable, size: int, batch: int | None = None) -> int:
    """Images of ``size`` x ``size`` pixels that are encoded together; at least 1.

    Args:
        backbone: Its patch decides how many tokens an image has, its device how many fit.
        size: Side of the network input in pixels.
        batch: What the caller asked for; None to choose by size.

    Raises:
        ConfigError: ``batch`` is below 1.
    """
    if batch is not None:
        if batch < 1:
            raise ConfigError(f"batch is {batch}; expected at least 1, or None to choose by size")
        return batch
    kind = next(backbone.parameters()).device.type
    tokens = max(1, size // backbone.spec.patch_size) ** 2
    return max(1, ENCODE_TOKENS.get(kind, ENCODE_TOKENS["cpu"]) // tokens)


def pipeline(source: Iterable[Any], *stages: Stage, depth: int = DEPTH) -> Generator[Any, None, None]:
    """Walk ``source`` and send every item through ``stages``, each in its own thread.

    An error of the source or of a stage reaches the caller after the results before it, as it was raised. Leaving early
    (an error in the caller's loop, Ctrl-C, ``close()``) stops all stages after the item they are at, closes ``source``
    in the thread that ran it, and waits for the threads. Hold it in ``contextlib.closing``: an unfinished generator is
    otherwise closed only when it is collected.

    Args:
        source: Read in a thread of its own, and by no other: it may hold open files.
        stages: Called with one item at a time, in order. They run under the caller's grad and autocast modes.
        depth: Items that may wait between two stages; 0 does everything in the caller's thread, one after the other.

    Yields:
        The items, in the order of ``source``.

    Raises:
        ConfigError: ``depth`` is below 0.
    """
    if depth < 0:
        raise ConfigError(f"pipeline depth is {depth}; expected 0 (one after the other) or more")
    walk = _in_turn(source, stages) if depth == 0 else _threaded(source, stages, depth)
    yield from walk


def _in_turn(source: Iterable[Any], stages: tuple[Stage, ...]) -> Iterator[Any]:
    """The plain loop."""
    items = iter(source)
    try:
        for item in items:
            for stage in stages:
                item = stage(item)  # noqa: PLW2901 - an input that is done with must not stay alive
            yield item
            del item
    finally:
        _close(items)


def _threaded(source: Iterable[Any], stages: tuple[Stage, ...], depth: int) -> Iterator[Any]:
    modes = _modes()
    queues = [_Queue(depth) for _ in range(len(stages) + 1)]
    inlets = [_Source(source), *queues[:-1]]
    jobs = [(inlet, stage, outlet) for inlet, stage, outlet in zip(inlets, (None, *stages), queues, strict=True)]
    threads = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(_work, *job, modes), name=f"samgraft-{number}", daemon=True
        )
        for number, job in enumerate(jobs)
    ]
    try:
        for thread in threads:
            thread.start()
        while (message := queues[-1].get()) is not _END:
            if isinstance(message, _Failed):
                raise message.error
            yield message
            del message  # while waiting, the caller's item is not kept alive here
    finally:
        for queue in queues:
            queue.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


@dataclass(frozen=True, eq=False)
class _Failed:
    """An error on its way to the caller, behind the items that came before it."""

    error: BaseException


class _Queue:
    """At most ``depth`` items on their way from one thread to the next; closing it wakes and stops both."""

    def __init__(self, depth: int) -> None:
        self._depth, self._items, self._closed = depth, deque[Any](), False
        self._changed = threading.Condition()

    def put(self, item: Any) -> bool:
        """Wait for room; False if the queue was closed and the item is not wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def get(self) -> Any:
        """Wait for an item; ``_END`` if the queue was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            if self._closed:
                return _END
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop what waits and stop both sides."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class _Source:
    """An iterable with the interface of a queue."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._items: Iterator[Any] | None = None

    def get(self) -> Any:
        """The next item, or ``_END``."""
        if self._items is None:
            self._items = iter(self._source)
        return next(self._items, _END)

    def close(self) -> None:
        """Let a generator run its ``finally``."""
        _close(self._items)


def _work(inlet: "_Queue | _Source", stage: Stage | None, outlet: _Queue, modes: Callable[[], Any]) -> None:
    """What a thread does: take, compute, hand on; whatever happens, stop the stage before it."""
    try:
        with modes():
            while (item := inlet.get()) is not _END and not isinstance(item, _Failed):
                if stage is not None:
                    item = stage(item)
                if not outlet.put(item):
                    return
                del item  # while waiting for the next, this one is not kept alive here
            outlet.put(item)
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        outlet.put(_Failed(error))
    finally:
        inlet.close()


def _close(items: Any) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()


def _modes() -> Callable[[], Any]:
    """Torch keeps grad and autocast modes per thread; this gives those of the calling thread to another."""
    grad = torch.is_grad_enabled()
    casts = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]

    @contextmanager
    def same() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for kind, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    return same
