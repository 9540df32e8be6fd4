"""Who computes the tiles: this process, several processes, or a Dask cluster. All run the same window task.

An engine takes an :class:`Infer` and tiles, and gives outcomes as they finish. What a tile becomes depends on the tile
alone, so an engine decides when something is there and never what. Only a few tiles are under way at any moment: a plan
of a million is walked, not held.
"""

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from itertools import islice
from multiprocessing import get_context
from typing import Any, Protocol

from samgraft.errors import ConfigError, MissingDependencyError, SamgraftError
from samgraft.recipes.engine.pipeline import pipeline
from samgraft.recipes.mosaic.journal import Outcome
from samgraft.recipes.mosaic.plan import Tile

ENGINES = ("local", "dask")
RETRIES = 3
"""How often a batch whose worker died is given to another one."""


class Infer(Protocol):
    """What is computed of a tile: a pure function of the scene, the tile and its own configuration.

    It can be pickled, and opens files and models where it is used, on first use.
    """

    def facts(self) -> Mapping[str, Any]:
        """Everything that decides its results, by name, as JSON."""
        ...

    def stream(self, tiles: Iterable[Tile]) -> Iterator[Outcome]:
        """Outcomes of tiles, in their order; reads ahead over the ends of tiles."""
        ...


class Engine(Protocol):
    """Runs an :class:`Infer` on tiles."""

    def run(self, infer: Infer, tiles: Iterable[Tile]) -> Generator[Outcome, None, None]:
        """Yield outcomes as they finish, in any order, each tile once.

        Raises:
            SamgraftError: what ``infer`` raised, or a worker that died again and again.
        """
        ...


class LocalEngine:
    """Processes on this machine.

    Args:
        workers: 1 stays in this process, where a thread computes while the caller writes; more are processes of their
            own, each with its own model, and share the cores of the machine.
        batch: Tiles that a process is given at once.

    Raises:
        ConfigError: fewer than one.
    """

    def __init__(self, workers: int = 1, *, batch: int = 2) -> None:
        """Start nothing yet."""
        if workers < 1 or batch < 1:
            raise ConfigError(f"workers {workers}, batch {batch}; expected at least 1 of each")
        self.workers, self.batch = workers, batch

    def run(self, infer: Infer, tiles: Iterable[Tile]) -> Generator[Outcome, None, None]:
        """See :class:`Engine`."""
        if self.workers == 1:
            with closing(pipeline(infer.stream(tiles))) as found:
                yield from found
            return
        packed(infer)
        begun: dict[int, Sequence[Tile]] = {}
        batches, deaths = _batches(tiles, self.batch), 0
        while True:
            try:
                with closing(self._pool(infer, batches, begun)) as results:
                    for outcomes in results:
                        yield from outcomes
                return
            except BrokenProcessPool as error:
                deaths += 1
                if deaths > RETRIES:
                    raise _dead(deaths, "process", begun.values()) from error

    def _pool(
        self, infer: Infer, batches: Iterator[Sequence[Tile]], begun: dict[int, Sequence[Tile]]
    ) -> Generator[list[Outcome], None, None]:
        """Results of one pool; ``begun`` holds batches that are not given back, by the number of their first tile."""
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        with ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=_start, initargs=(infer, threads)
        ) as pool:
            try:
                running: dict[Future[list[Outcome]], int] = {
                    pool.submit(_work, batch): first for first, batch in begun.items()
                }
                while True:
                    for batch in islice(batches, 2 * self.workers - len(running)):
                        begun[batch[0].number] = batch
                        running[pool.submit(_work, batch)] = batch[0].number
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcomes = future.result()
                        del begun[running.pop(future)]
                        yield outcomes
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


class DaskEngine:
    """A Dask cluster; docs/rasters_at_scale.md says what moves over the network.

    Args:
        scheduler: Address such as ``tcp://node1:8786``; None starts processes on this machine.
        workers: Of the cluster that is started here.
        batch: Tiles of one task; a scheduler that has a task per tile of a continent has too many.
        ahead: Tasks per worker that are submitted and not finished.

    Raises:
        ConfigError: fewer than one worker or tile.
        MissingDependencyError: Dask is not installed.
    """

    def __init__(self, scheduler: str | None = None, *, workers: int = 2, batch: int = 4, ahead: int = 2) -> None:
        """Connect to nothing yet."""
        if workers < 1 or batch < 1 or ahead < 1:
            raise ConfigError(f"workers {workers}, batch {batch}, ahead {ahead}; expected at least 1 of each")
        self.scheduler, self.workers, self.batch, self.ahead = scheduler, workers, batch, ahead
        self._distributed = _distributed()

    def run(self, infer: Infer, tiles: Iterable[Tile]) -> Generator[Outcome, None, None]:
        """See :class:`Engine`. A worker that dies gives its batch back; it goes to another one."""
        key, batches = hashlib.sha256(packed(infer)).hexdigest(), _batches(tiles, self.batch)
        with ExitStack() as stack:
            client = self._client(stack)
            done = self._distributed.as_completed()
            fill = max(2, self.ahead * max(self.workers, sum(client.nthreads().values())))
            under_way = 0
            while True:
                for batch in islice(batches, fill - under_way):
                    name = f"samgraft-{batch[0].number}-{time.monotonic_ns()}"
                    done.add(client.submit(work_on, key, infer, batch, key=name, retries=0, pure=False))
                    under_way += 1
                if not under_way:
                    return
                future = next(done)
                under_way -= 1
                try:
                    outcomes = future.result()
                except self._distributed.KilledWorker as error:
                    raise _dead(RETRIES + 1, "worker", ()) from error
                future.release()
                yield from outcomes

    def _client(self, stack: ExitStack) -> Any:
        """A client of the scheduler, or of a cluster that ends with ``stack``."""
        address: Any = self.scheduler
        if address is None:
            address = stack.enter_context(
                self._distributed.LocalCluster(
                    n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None
                )
            )
        try:
            return stack.enter_context(self._distributed.Client(address, timeout=30))
        except (OSError, TimeoutError) as error:
            raise ConfigError(
                f"no Dask scheduler answers at {self.scheduler!r} ({error}); start one with `dask scheduler`, or leave "
                "the address out to use this machine"
            ) from error


def packed(infer: Infer) -> bytes:
    """The bytes that stand for it on the way to a worker; multiprocessing and Dask make and read them.

    Raises:
        ConfigError: it holds something that cannot travel, such as a model.
    """
    try:
        return pickle.dumps(infer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"workers cannot be given {type(infer).__name__}: {error}; name adapter, backbone and raster by their paths"
        ) from error


_here: dict[str, Infer] = {}
_one_at_a_time = threading.Lock()


def work_on(key: str, infer: Infer, tiles: Sequence[Tile]) -> list[Outcome]:
    """What a Dask worker does with one batch; the model stays in the process for the next one.

    Args:
        key: Hash of what :func:`packed` makes of ``infer``.
        infer: As it arrived, without a model; used if the process does not have this ``key`` yet.
        tiles: What is computed.
    """
    with _one_at_a_time:  # a model serves one thread, and a second one would need its memory again
        if key not in _here:
            _here.clear()
            _here[key] = infer
        return list(_here[key].stream(tiles))


def _start(infer: Infer, threads: int) -> None:
    """Make a process ready; it ends with the one that started it, also if that was killed."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    _here[""] = infer


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(tiles: Sequence[Tile]) -> list[Outcome]:
    return list(_here[""].stream(tiles))


def _batches(tiles: Iterable[Tile], size: int) -> Iterator[Sequence[Tile]]:
    walk = iter(tiles)
    while batch := list(islice(walk, size)):
        yield batch


def _dead(times: int, what: str, waiting: Iterable[Sequence[Tile]]) -> SamgraftError:
    numbers = [tile.number for batch in waiting for tile in batch]
    where = f", last at tiles {numbers[:8]}" if numbers else ""
    return SamgraftError(
        f"{times} times a {what} was killed{where}; usually memory ran out, so use fewer workers or smaller tiles "
        "(--workers, --tile); finished tiles stay, run the same command again"
    )


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingDependencyError(
            "the Dask engine needs dask and distributed; run: pip install 'samgraft[dask]'"
        ) from error
    return distributed
