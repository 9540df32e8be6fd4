"""``samgraft predict INPUT... -o FOLDER``: masks of many files, shared by processes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.align_options import add_align, align_options
from samgraft.recipes.commands.parsing import PlainParser, plain_parser, say

if TYPE_CHECKING:
    from samgraft.recipes.predicting import Outcome
    from samgraft.recipes.ranks import Share

_ENVIRONMENT = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""Variables of torchrun, and of srun, that say which of how many processes this is."""
_POLL = 0.5
"""Seconds between looks at whether the processes are still there."""


def run(arguments: Sequence[str]) -> None:
    """Segment every input; exit code 1 if some of them failed."""
    values = _parser().parse_args(list(arguments))
    for name in ("devices", "batch"):
        if getattr(values, name) < 1:
            raise ConfigError(f"--{name} is {getattr(values, name)}; expected at least 1")
    rank, world = chosen_rank(values.rank, values.world, os.environ)

    from samgraft.recipes.heap import keep_memory
    from samgraft.recipes.predicting import claim_output, deal, find_inputs, predict
    from samgraft.recipes.ranks import Share

    inputs, output = find_inputs(values.inputs), Path(values.output)
    moved = {name: v for name, v in align_options(values).items() if name != "align_source"}
    claim_output(output, inputs, Path(values.adapter), overwrite=values.overwrite, moved=moved)
    shares = [Share(rank=rank * values.devices + i, world=world * values.devices) for i in range(values.devices)]
    own = sum(len(deal(inputs, share)) for share in shares)
    part = f", part {rank} of {world}" if world > 1 else ""
    say(f"{own} of {len(inputs)} inputs{part}, {values.devices} process{'es' * (values.devices > 1)}")
    options = {"adapter": values.adapter, "backbone": values.backbone, "overwrite": values.overwrite}
    options |= {"batch": values.batch, "device": values.device} | align_options(values)
    outcomes: list[Outcome] = []

    def tell(outcome: "Outcome") -> None:
        outcomes.append(outcome)
        say(f"[{len(outcomes)}/{own}] {outcome.state} {outcome.mask or outcome.source} ({outcome.seconds:.1f} s)")

    if len(shares) == 1:
        keep_memory()
        predict(inputs, output, share=shares[0], tell=tell, **options)
    else:
        for outcome in _together(inputs, output, shares, options):
            tell(outcome)
    _conclude(outcomes)


def _parser() -> PlainParser:
    parser = plain_parser(
        "predict",
        "Masks of many files, one per input on exactly its grid. Masks that are there already are not computed again; "
        "an input that fails is named at the end and does not stop the others (exit code 1).",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, DICOM folders, or folders of images")
    parser.add_argument("-a", "--adapter", required=True, help="adapter file (*.graft)")
    parser.add_argument("-o", "--output", required=True, help="folder for the masks")
    parser.add_argument("--backbone", default=None, help="name, folder or file; by default the adapter's")
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine, a GPU each if there are any")
    parser.add_argument("--overwrite", action="store_true", help="compute masks again that are there already")
    parser.add_argument("--batch", type=int, default=16, help="network inputs computed together")
    parser.add_argument("--device", default="auto", help="auto, cpu, or cuda:0")
    parser.add_argument(
        "--rank", type=int, default=None, help="array jobs: which part, from 0; default RANK or SLURM's"
    )
    parser.add_argument("--world", type=int, default=None, help="array jobs: number of parts")
    add_align(parser)
    return parser


def chosen_rank(rank: int | None, world: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which of how many parts: as told, else from the environment, else all.

    Raises:
        ConfigError: only one of the two is given, or they do not fit.
    """
    if (rank is None) != (world is None):
        raise ConfigError(f"--rank is {rank} and --world is {world}; give both, such as --rank 0 --world 4")
    if rank is None or world is None:
        named = next(((a, b) for a, b in _ENVIRONMENT if a in environment and b in environment), None)
        rank, world = (0, 1) if named is None else (int(environment[named[0]]), int(environment[named[1]]))
    if not 0 <= rank < world:
        raise ConfigError(f"--rank {rank} of --world {world}; expected 0 up to, not including, the world")
    return rank, world


def _together(
    inputs: Sequence[Path], output: Path, shares: Sequence["Share"], options: Mapping[str, Any]
) -> "Iterator[Outcome]":
    """Start a process per share; yield their outcomes as they come, and a failure for each input a dead one leaves."""
    from samgraft.recipes.predicting import Outcome, deal

    context = get_context("spawn")
    queue = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // len(shares))
    processes: list[BaseProcess] = []
    for index, share in enumerate(shares):
        arguments = (queue, index, list(inputs), output, share, dict(options), threads)
        processes.append(context.Process(target=_work, args=arguments, daemon=True))
        processes[-1].start()
    left = [set(deal(inputs, share)) for share in shares]
    try:
        while any(left):
            dead = [index for index, process in enumerate(processes) if not process.is_alive()]
            try:  # what a process sent before it ended is in the queue by now
                index, outcome = queue.get(timeout=_POLL)
            except Empty:
                for index in dead:
                    text = f"its process ended with code {processes[index].exitcode}"
                    yield from (Outcome(source=path, state="failed", error=text) for path in sorted(left[index]))
                    left[index].clear()
            else:
                left[index].discard(outcome.source)
                yield outcome
    finally:
        for process in processes:
            if any(left):
                process.terminate()
            process.join()


def _work(
    queue: Any,
    index: int,
    inputs: Sequence[Path],
    output: Path,
    share: "Share",
    options: Mapping[str, Any],
    threads: int,
) -> None:
    """What one process does."""
    import torch

    from samgraft.errors import SamgraftError
    from samgraft.recipes.cli import fail
    from samgraft.recipes.heap import keep_memory
    from samgraft.recipes.predicting import predict

    keep_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    try:
        predict(inputs, output, share=share, tell=lambda outcome: queue.put((index, outcome)), **options)
    except SamgraftError as error:
        fail(f"{type(error).__name__}: {error}")
        raise SystemExit(2) from error


def _conclude(outcomes: "Sequence[Outcome]") -> None:
    """Count, and name what failed.

    Raises:
        SystemExit: code 1, if any input failed.
    """
    from samgraft.recipes.cli import fail

    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("written", "skipped", "failed")}
    say(", ".join(f"{count} {state}" for state, count in counts.items()))
    for outcome in outcomes:
        if outcome.state == "failed":
            fail(f"{outcome.source}: {outcome.error}")
    if counts["failed"]:
        raise SystemExit(1)
