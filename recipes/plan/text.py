"""A plan as plain text; every figure says whether it is exact, measured or an estimate."""

from collections.abc import Sequence
from dataclasses import asdict

from samgraft.recipes.plan.advice import Advice
from samgraft.recipes.plan.estimate import Memory, Plan
from samgraft.recipes.plan.measure import Measured

MB = 10**6
_WORDS = {
    "libraries": "libraries (measured here)",
    "data": "tiles and validation cases",
    "weights": "weights (exact)",
    "states": "optimiser states (exact)",
    "gradients": "gradients at the peak",
    "batch": "images, labels, kept features",
    "activations": "activations at the peak",
    "transient": "transient",
    "holes": "holes in the heap (model of glibc)",
}


def render(plan: Plan, advice: Sequence[Advice] = (), measured: Measured | None = None) -> str:
    """Several lines."""
    parts = [_network(plan), _memory(plan), _time(plan), _cache(plan)]
    if measured is not None:
        parts.append(_measured(plan, measured))
    if advice:
        parts.append(_advice(plan, advice))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _network(plan: Plan) -> list[str]:
    whole = "the whole encoder" if plan.frozen_encoder else f"{plan.frozen_blocks} of {plan.num_blocks} encoder blocks"
    return [
        f"network    {plan.backbone}, {plan.frozen:,} frozen parameters; {plan.trainable:,} trained (exact)",
        f"           adapter file {mb(plan.adapter_bytes)}",
        f"           never differentiated, from the start on: {whole} (exact)",
        f"           input {plan.size} x {plan.size} px, {plan.batch} images per batch",
        f"           {plan.operations / 1e9:,.1f} billion operations per batch (exact)",
        f"           {mb(plan.saved_activations)} of activations live from the forward to the backward pass (exact, "
        f"{plan.counted_by} tensors)",
    ]


def _memory(plan: Plan) -> list[str]:
    rows = [(_WORDS[name], size) for name, size in asdict(plan.memory).items() if size >= MB / 10]
    where = "of the GPU" if plan.machine.device == "cuda" else "of the process"
    fits = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"memory     {mb(plan.memory.total)} {where} at the peak (estimate, may be a fifth low); {fits}: "
        f"{mb(plan.machine.free)} are free"
    ]
    return lines + [f"           {text:<36} {mb(size):>12}" for text, size in rows]


def _time(plan: Plan) -> list[str]:
    t, tiles, m = plan.times, plan.tiles, plan.machine
    how = "counted" if tiles.counted else "as given or assumed"
    lines = [
        "time       estimates (half as much to twice on a busy machine), from measured rates:",
        f"           {m.large / 1e9:,.0f} billion operations per second, in attention {m.small / 1e9:,.0f}; "
        f"{m.moved / 1e9:.1f} GB per second; {m.threads} threads",
        f"           {tiles.train:,} training and {tiles.val:,} validation tiles ({how})",
        f"           step        {duration(t.step):>10}   with kept features {duration(t.step_cached):>10}",
        f"           validation  {duration(t.validation):>10}   with kept features {duration(t.validation_cached):>10}",
        f"           whole run   {duration(t.run):>10}   with kept features {duration(t.run_cached):>10}",
    ]
    if t.steps:
        lines.append(f"           {t.steps:,} steps")
    return lines


def _cache(plan: Plan) -> list[str]:
    if not plan.cache_entry:
        return ["cache      nothing is frozen, so no features are kept"]
    views = f"{plan.views} views of each tile" if plan.cached else "validation only: each training view is new"
    lines = [f"cache      {mb(plan.cache_bytes)} on disk at most: {views}, {mb(plan.cache_entry)} per view (exact)"]
    if plan.cache_bytes > plan.cache_limit:
        lines.append(
            f"           more than train.cache_gb ({mb(plan.cache_limit)}): views will be computed again; raise it, or "
            "lower augment.views"
        )
    return lines


def _measured(plan: Plan, measured: Measured) -> list[str]:
    memory = expected_peak(plan.memory, measured)
    seconds = expected_seconds(plan)
    return [
        f"measured   {mb(measured.peak)} in two real steps; estimated {mb(memory)} ({off(memory, measured.peak)})",
        f"           {duration(measured.seconds)} for a batch; estimated {duration(seconds)} "
        f"({off(seconds, measured.seconds)})",
    ]


def expected_peak(memory: Memory, measured: Measured) -> int:
    """The estimate for what was measured: without data, and with the libraries of that process."""
    return memory.total - memory.data - memory.libraries + measured.libraries


def expected_seconds(plan: Plan) -> float:
    """The estimate for what was measured: one batch without augmentation."""
    return plan.times.rest + plan.times.update + (0.0 if plan.cached else plan.times.frozen)


def _advice(plan: Plan, advice: Sequence[Advice]) -> list[str]:
    now = plan.times.step_cached if plan.cached else plan.times.step
    lines = ["to need less (estimates)"]
    for one in advice:
        change = f"{off(one.step, now)} time per step"
        lines.append(
            f"  {'fits' if one.fits else '    '}  {mb(one.total):>11}  {change:<26}  {one.option}  ({one.cost})"
        )
    return lines


def off(value: float, reference: float) -> str:
    """Signed percent, such as "+12 %"."""
    return f"{100 * (value / reference - 1):+.0f} %" if reference else "-"


def mb(size: float) -> str:
    """Bytes in MB (10^6), or GB from 10 on."""
    return (
        f"{size / 1e9:,.1f} GB"
        if size >= 10**10
        else f"{size / MB:,.1f} MB"
        if size < 10**8
        else f"{size / MB:,.0f} MB"
    )


def duration(seconds: float) -> str:
    """Milliseconds, seconds, minutes or hours."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
