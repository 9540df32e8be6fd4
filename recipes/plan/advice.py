"""What to change when a run does not fit: each change with its effect, those that cost least first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import SamConfig

from samgraft.errors import SamgraftError
from samgraft.recipes.config import FitConfig
from samgraft.recipes.plan.estimate import Plan, change, plan_with

STATES_WORTH = 0.05
"""Share of the memory from which the optimiser's states are worth a change."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change and what it is expected to do."""

    option: str
    """As on the command line."""
    cost: str
    """What it costs beside time."""
    total: int
    """Bytes at the peak."""
    step: float
    """Seconds of a step."""
    fits: bool


def advise(config: FitConfig, shape: SamConfig, plan: Plan) -> list[Advice]:
    """Every change alone; if none is enough, all of them one after the other until it is.

    Args:
        config: The run.
        shape: Of the backbone.
        plan: The run as it is.
    """
    found = [_effect(step, plan, config, shape) for step in options(config, plan)]
    alone = [advice for advice in found if advice is not None]
    if any(advice.fits for advice in alone):
        return alone
    together: FitConfig = config
    words: dict[str, tuple[str, str]] = {}
    for option, cost, changed in options(config, plan):
        together = _merge(together, config, changed)
        words[option.split()[0]] = (option, cost)  # a second choice of the same takes the place of the first
        names, costs = zip(*words.values(), strict=True)
        advice = _effect((" ".join(names), "; ".join(costs), together), plan, config, shape)
        if advice is not None and advice.fits:
            return [*alone, advice]
    return alone


Option = tuple[str, str, FitConfig]


def options(config: FitConfig, plan: Plan) -> Iterator[Option]:
    """(words, cost, configuration) of what could be changed."""
    train, data = config.train, config.data
    if plan.machine.device == "cpu" and not train.return_memory:
        yield (
            "--train.return_memory true",
            "same numbers; slower where tensors are many",
            change(config, train={"return_memory": True}),
        )
    batch = data.batch_size
    for smaller in sorted({batch // 2, 1} - {0, batch}, reverse=True):
        times = train.accumulate * batch // smaller
        yield (
            f"--data.batch_size {smaller} --train.accumulate {times}",
            "batch statistics of smaller batches",
            change(config, data={"batch_size": smaller}, train={"accumulate": times}),
        )
    if config.task.optimizer == "adamw" and plan.memory.states > STATES_WORTH * plan.memory.total:
        yield "--task.optimizer adafactor", "another optimiser", change(config, task={"optimizer": "adafactor"})
    if not train.checkpointing:
        yield (
            "--train.checkpointing true",
            "same numbers; blocks are computed twice",
            change(config, train={"checkpointing": True}),
        )
    later = plan.num_blocks - plan.frozen_blocks
    for blocks in sorted({later // 2, later // 4} - {0}, reverse=True):
        if blocks < later and config.task.grafts:
            grafts = {name: {**values, "blocks": f"last:{blocks}"} for name, values in config.task.grafts.items()}
            yield f"grafts with blocks: last:{blocks}", "fewer blocks learn", change(config, task={"grafts": grafts})
    if plan.size >= 128:
        half = plan.size // 2
        yield f"--data.size {half}", "smaller details are lost", change(config, data={"size": half})


def _merge(base: FitConfig, origin: FitConfig, changed: FitConfig) -> FitConfig:
    """``base`` with what ``changed`` has different from ``origin``."""
    parts = {}
    for name in ("task", "data", "train"):
        before, after = vars(getattr(origin, name)), vars(getattr(changed, name))
        parts[name] = replace(getattr(base, name), **{k: v for k, v in after.items() if v != before[k]})
    return replace(base, **parts)


def _effect(option: Option, plan: Plan, config: FitConfig, shape: SamConfig) -> Advice | None:
    """The plan after a change; None where it is refused (a graft that knows no ``blocks``)."""
    words, cost, changed = option
    counts = plan.tiles
    if changed.data.size != config.data.size:
        counts = replace(counts, bytes=round(counts.bytes * (changed.data.size / config.data.size) ** 2))
    try:
        new = plan_with(changed, shape, counts, plan.machine)
    except SamgraftError:
        return None
    seconds = new.times.step_cached if new.cached else new.times.step
    return Advice(option=words, cost=cost, total=new.memory.total, step=seconds, fits=new.fits)
