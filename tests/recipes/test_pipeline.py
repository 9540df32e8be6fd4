import gc
import random
import signal
import threading
import time
import traceback
import weakref
from contextlib import closing

import pytest
import torch

from samgraft.errors import ConfigError
from samgraft.recipes.engine.pipeline import encode_batch, pipeline
from tests.recipes._oracle import Oracle

DEPTHS = (0, 1, 2, 5)


class Item:
    """Something whose life can be counted."""

    alive = 0
    peak = 0
    lock = threading.Lock()

    def __init__(self, number):
        self.number = number
        with Item.lock:
            Item.alive += 1
            Item.peak = max(Item.peak, Item.alive)
        weakref.finalize(self, Item._gone)

    @staticmethod
    def _gone():
        with Item.lock:
            Item.alive -= 1


def mine():
    return [thread for thread in threading.enumerate() if thread.name.startswith("samgraft-")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert mine() == []
    yield
    assert mine() == []


def numbers(count, closed=None, *, fail_at=None):
    """Numbers 0 .. count - 1; notes the thread that closed it, and may fail on the way."""
    try:
        for number in range(count):
            if number == fail_at:
                raise LookupError(f"read {number}")
            yield number
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


def slow(change, seed):
    chance = random.Random(seed)  # noqa: S311 - only delays

    def stage(item):
        time.sleep(chance.random() * 0.003)
        return change(item)

    return stage


@pytest.mark.parametrize("depth", DEPTHS)
def test_order_is_kept_whatever_the_stages_take(depth):
    stages = [slow(lambda x: x * 3, 1), slow(lambda x: x + 1, 2), slow(str, 3)]
    assert list(pipeline(numbers(40), *stages, depth=depth)) == [str(3 * n + 1) for n in range(40)]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_error_comes_after_the_results_before_it_with_its_own_traceback(depth, where):
    def breaks(item):
        if item == 5:
            raise ZeroDivisionError("stage 5")
        return item

    stages = [lambda x: x, lambda x: x]
    closed, seen = [], []
    if where:
        stages[where - 1] = breaks
    expected = LookupError if where == 0 else ZeroDivisionError
    with pytest.raises(expected) as caught, closing(
        pipeline(numbers(10_000, closed, fail_at=None if where else 5), *stages, depth=depth)
    ) as found:  # fmt: skip
        seen.extend(found)
    assert seen == [0, 1, 2, 3, 4]
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == ("breaks" if where else "numbers")
    assert len(closed) == 1 and closed[0].startswith("samgraft-") == (depth > 0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_of_the_caller_closes_the_source_and_stops_the_stages(depth):
    closed, calls = [], []
    with pytest.raises(KeyError), closing(pipeline(numbers(10_000, closed), calls.append, depth=depth)) as found:
        next(found)
        raise KeyError
    assert len(closed) == 1
    assert len(calls) <= 3 * depth + 3


def test_items_alive_are_bounded():
    depth, stages = 2, [slow(lambda x: Item(x.number), 1), slow(lambda x: Item(x.number), 2)]
    gc.collect()
    Item.peak = Item.alive
    seen = []
    with closing(pipeline((Item(n) for n in range(200)), *stages, depth=depth)) as found:
        for item in found:
            time.sleep(0.0005)
            seen.append(item.number)
            del item
    gc.collect()
    # three queues, each thread with what it takes and what it gives, and the caller's own
    assert seen == list(range(200)) and Item.peak <= 3 * depth + 2 * 3 + 1
    assert Item.alive == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_callers_loop_ends_all_threads(kind):
    released = threading.Event()

    def patient(item):
        released.wait(0.05)
        return item

    with pytest.raises(kind), closing(pipeline(numbers(100), patient, depth=1)) as found:
        for item in found:
            if item == 2:
                raise kind
    released.set()


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_reaches_a_caller_that_waits():
    """Ctrl-C while the caller waits for a slow stage."""
    ready = threading.Event()

    def stuck(item):
        ready.set()
        time.sleep(0.3)
        return item

    def press():
        ready.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(pipeline(numbers(5), stuck, depth=1))
    thread.join()


def test_an_abandoned_pipeline_is_closed_when_it_is_collected():
    closed = []
    found = pipeline(numbers(100, closed), depth=1)
    assert next(found) == 0
    del found
    gc.collect()
    assert len(closed) == 1


def test_one_that_was_never_asked_starts_nothing():
    pipeline(numbers(3), depth=2).close()
    assert mine() == []


def test_stages_run_in_their_own_threads_under_the_callers_modes():
    seen = []

    def look(item):
        seen.append((threading.current_thread().name, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return item

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert list(pipeline([1], look, look)) == [1]
    assert [name for name, _, _ in seen] == ["samgraft-1", "samgraft-2"]
    assert [(grad, cast) for _, grad, cast in seen] == [(False, True)] * 2
    threads = []
    list(pipeline([1], lambda _: threads.append(torch.get_num_threads())))
    assert threads == [torch.get_num_threads()]


def test_wrong_depth_and_batch_are_named():
    with pytest.raises(ConfigError, match="depth is -1; expected 0"):
        next(pipeline([], depth=-1))
    with pytest.raises(ConfigError, match="batch is 0; expected at least 1"):
        encode_batch(Oracle(), 64, 0)


@pytest.mark.parametrize(("size", "expected"), [(64, 32), (128, 8), (256, 2), (512, 1), (1024, 1)])
def test_batch_follows_the_tokens(size, expected):
    assert encode_batch(Oracle(), size) == expected
    assert encode_batch(Oracle(), size, 3) == 3
