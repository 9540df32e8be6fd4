"""What the benchmark of domain shift compares, and how one row of it is run.

A row is told what it may know: :class:`Known` has the images of the target, and data sets with the labels that its
name promises. Scored cases are kept apart (:class:`Prepared`).
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.bundle import read_header
from samgraft.domains.segmentation import Segmentation
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.run import adapt
from samgraft.recipes.config import FitConfig, TrainConfig
from samgraft.recipes.engine.run import load_adapter, segment
from samgraft.recipes.rescaling import rescale_adapter
from samgraft.recipes.tasks import SegmentationTask
from samgraft.recipes.test_time.methods import EntropyConfig, SceneMethod, StatisticsConfig
from samgraft.recipes.test_time.segmenting import segment_adapted
from samgraft.recipes.training import fit
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._graft_rows import KEY, short_hash, state_of
from tests.benchmarks._shift_folders import IMAGES, data_set, unlabelled, write_image
from tests.benchmarks._shift_pairs import PAIRS, Pair, few, second_observer
from tests.benchmarks._shift_scores import Scored, agreement, score
from tests.benchmarks._shift_weak import WRITERS, WeakWriter, shipped, weak_set

Task = dict[str, Any]
FEW = 5
"""Labelled cases of the row between none and all."""
STEPS = 20_000
"""More than any budget reaches: time ends a run."""
TRIAL = (4, 6, 2)
"""Cases of source, target and score that a trial takes."""
STARTED = 0.5
"""Share of the recipe's rate with which a row goes on from the source adapter, as in the shipped recipes for that."""
RECIPE = 2
"""Raise it when the code of the benchmark changes what a run does: earlier results are then run again."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What rows may be told."""

    pair: Pair
    adapter: Path
    """The source adapter, told what the target is."""
    images: tuple[Path, ...]
    """Training images of the target."""
    sets: Mapping[str, Path]
    """Data sets of the target: "few" and "all" with masks, "boxes", "points" and "scribbles" with those instead."""
    run: Path
    """An empty folder for what the row leaves behind."""
    budget: float
    """Seconds of process time."""
    seed: int
    backbone: HFSamBackbone
    """Without grafts; for what gives it back as it was."""
    backbone_name: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a row is scored with."""

    adapter: Path
    use: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``samgraft.segment``."""
    method: SceneMethod | None = None
    """What is done to the adapter on every scene, and undone after it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For its line: steps, whether the guard fell back, ..."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row."""

    name: str
    run: Callable[[Known], Outcome]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides it beside the pair: results of other settings are run again."""
    budgeted: bool = True
    """Whether it takes a budget of time."""
    serves: Callable[[Pair], bool] = field(default=lambda pair: True)
    """Pairs that have it."""


class ProcessClock(Callback):
    """Let the limit of time of a run count the time of this process from its first step on, and count the steps."""

    def __init__(self) -> None:
        """Nothing was done yet."""
        self.began, self.steps = 0.0, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self.began = time.process_time()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Move the start of the task's clock so that it shows process time."""
        self.steps += 1
        if isinstance(pl_module, SegmentationTask):
            pl_module.began = time.monotonic() - (time.process_time() - self.began)


def fit_config(pair: Pair, data: Path, *, target: bool, seed: int, budget: float, **more: Any) -> FitConfig:
    """The settings of a training run of a pair.

    Args:
        pair: Its recipe and sizes.
        data: The data set.
        target: Whether it shows the target.
        seed: Of everything.
        budget: Seconds.
        more: Further fields of ``data``; "start_from" of ``train``.
    """
    start = more.pop("start_from", None)
    recipe = shipped(pair.recipe)
    sizes = {**pair.data, **(pair.target_data if target else {}), **more}
    train = TrainConfig(
        steps=STEPS,
        minutes=budget / 60,
        val_every=STEPS,
        seed=seed,
        accelerator="cpu",
        progress=False,
        cache=False,
        start_from=None if start is None else str(start),
    )
    task = replace(recipe.task, lr=recipe.task.lr * (STARTED if target else 1.0))
    return replace(recipe, task=task, data=replace(recipe.data, path=str(data), seed=seed, **sizes), train=train)


def train(config: FitConfig, run: Path, backbone: str) -> dict[str, Any]:
    """``samgraft fit`` until the process has trained for the budget; steps that it took.

    The run is validated once, at its end: nothing is chosen by figures. Frozen tensors that change are an error there.
    """
    clock = ProcessClock()
    fit(config, run, backbone=open_backbone(backbone), report=False, callbacks=[clock])
    return {"steps": clock.steps, "lr": config.task.lr}


def _source_only(known: Known) -> Outcome:
    return Outcome(adapter=known.adapter)


def _used(**options: str) -> Callable[[Known], Outcome]:
    return lambda known: Outcome(adapter=known.adapter, use=options)


def _fitted(method: SceneMethod) -> Callable[[Known], Outcome]:
    return lambda known: Outcome(adapter=known.adapter, method=method)


def _not_on_rasters(pair: Pair) -> bool:
    return pair.recipe != "aerial_buildings"


def _thin(pair: Pair) -> bool:
    return pair.recipe == "retina_vessels"


def _in_mm(pair: Pair) -> bool:
    return pair.modality is not None


def _adapted(known: Known) -> Outcome:
    """Images of the target and the file of the source adapter, nothing else."""
    config = AdaptConfig(steps=STEPS, seconds=known.budget, seed=known.seed, device="cpu", progress=False)
    out = known.run / "adapter.graft"
    result = adapt(known.adapter, known.images, out, config, backbone=known.backbone, report=False)
    last = result.rounds[-1].step if result.rounds else 0
    facts = {"fell_back": result.fell_back, "reason": result.reason, "best_step": result.best_step, "steps": last}
    return Outcome(adapter=result.adapter, facts=facts | {"lr": config.lr})


def _trained(labels: str, **data: Any) -> Callable[[Known], Outcome]:
    def run(known: Known) -> Outcome:
        settings = {"target": True, "seed": known.seed, "budget": known.budget, "start_from": known.adapter, **data}
        config = fit_config(known.pair, known.sets[labels], **settings)
        facts = train(config, known.run / "fit", known.backbone_name)
        return Outcome(adapter=known.run / "fit" / "adapter.graft", facts=facts)

    return run


ALIGNED = (
    Row(name="align auto", run=_used(align="auto"), budgeted=False),
    Row(name="align histogram", run=_used(align="histogram"), budgeted=False),
    Row(name="align moments", run=_used(align="moments"), budgeted=False),
    Row(name="align reinhard", run=_used(align="reinhard"), budgeted=False),
    Row(name="align fourier", run=_used(align="fourier"), budgeted=False, serves=_not_on_rasters),
    Row(name="spacing", run=_used(spacing="adapter"), budgeted=False, serves=_in_mm),
    Row(name="align auto, spacing", run=_used(align="auto", spacing="adapter"), budgeted=False, serves=_in_mm),
)
"""Ways to align the input; "auto" chooses by its rule. No pair has dyed tissue on both sides, as "macenko" wants, and
rasters are always seen at the pixel size of training."""
SECOND = "second observer"
ROWS = {
    row.name: row
    for row in (
        Row(name="source only", run=_source_only, budgeted=False),
        *ALIGNED,
        Row(name="test time entropy", run=_fitted(EntropyConfig()), budgeted=False),
        Row(name="test time statistics", run=_fitted(StatisticsConfig()), budgeted=False),
        Row(name="no labels", run=_adapted, settings=AdaptConfig().to_dict()),
        Row(name="weak boxes", run=_trained("boxes", supervision="boxes")),
        Row(name="weak points", run=_trained("points", supervision="points")),
        Row(name="weak scribbles", run=_trained("scribbles", supervision="scribbles"), serves=_thin),
        Row(name=f"{FEW} target labels", run=_trained("few")),
        Row(name="all target labels", run=_trained("all")),
        Row(name=SECOND, run=_source_only, budgeted=False, serves=lambda pair: pair.second_observer),
    )
}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pair of a seed on disk."""

    images: tuple[Path, ...]
    sets: Mapping[str, Path]
    source: Path
    """Data set that trains the source adapter."""
    scored: Scored
    labelled: Mapping[str, int]
    """Data set -> number of its cases."""


def source_folder(work: Path, pair: Pair, seed: int) -> Path:
    """Where the source domain of a pair has its data and adapters."""
    return work / "sources" / pair.source / f"seed{seed}"


def run_folder(work: Path, pair: str, seed: int, method: str) -> Path:
    """What a run leaves behind."""
    return work / "runs" / pair / f"seed{seed}" / method.replace(" ", "_")


def prepare(
    pair: Pair, seed: int, work: Path, weak: Mapping[str, WeakWriter] = WRITERS, *, trial: bool = False
) -> Prepared:
    """Write the folders of a pair; what is there already is made anew.

    Args:
        pair: Which.
        seed: Of the camera, and of the few labelled cases.
        work: Folder for all pairs.
        weak: Kind of weak labels -> what writes them.
        trial: A few cases only.
    """
    sides = pair.sides(seed).first(*TRIAL) if trial else pair.sides(seed)
    target, scored = work / pair.name / f"seed{seed}", work / "scored" / pair.name / f"seed{seed}"
    source = source_folder(work, pair, seed) / "data"
    for folder in (target, scored, source):
        shutil.rmtree(folder, ignore_errors=True)
    written = {item.id: path for item, path in zip(sides.target, unlabelled(sides.target, target), strict=True)}
    chosen = few(sides.target, written, FEW, seed)
    sets = {"all": data_set(sides.target, written, target / "all"), "few": data_set(chosen, written, target / "few")}
    for kind, write in weak.items():
        sets[kind] = weak_set(sides.target, written, target / kind, write=write, recipe=pair.recipe, seed=seed)
    shown = unlabelled(sides.source, source / "originals")
    data_set(sides.source, {i.id: p for i, p in zip(sides.source, shown, strict=True)}, source)
    return Prepared(
        images=tuple(written.values()),
        sets=sets,
        source=source,
        scored=[(item, write_image(item, scored / IMAGES[item.layout])) for item in sides.scored],
        labelled={name: len(chosen) if name == "few" else len(sides.target) for name in sets},
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_adapter(pair: Pair, data: Path, task: Task, backbone: str) -> Path:
    """The source adapter of a domain and seed, as a file: trained once, and then found again; told what the target is.

    Its name holds what decides it, so that one of another budget is not taken for it.
    """
    facts = [task["weights"], task["source_budget"], task["trial"], source_facts(pair), RECIPE]
    folder = data.parent / short_hash(facts)
    adapter = folder / "adapter.graft"
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        seed, budget = task["seed"], task["source_budget"]
        train(fit_config(pair, data, target=False, seed=seed, budget=budget), folder, backbone)
        (folder / "done").touch()
    if pair.modality is None:
        return adapter
    told = folder / f"as_{pair.modality}.graft"
    return told if told.is_file() else rescale_adapter(adapter, told, modality=pair.modality)


def source_facts(pair: Pair) -> dict[str, Any]:
    """What decides the source adapter of a pair, as JSON."""
    return {"source": pair.source, "recipe": shipped(pair.recipe).to_dict(), "data": {**pair.data}}


def recipe_hash(pair: Pair, task: Task) -> str:
    """Of what decides the runs of a pair beside the row."""
    more = [{**pair.target_data}, pair.metric, pair.modality, task["source_budget"], task["trial"], FEW, RECIPE]
    return short_hash([source_facts(pair), more])


def one(known: Known, row: Row, scored: Scored) -> dict[str, Any]:
    """Run a row and score it."""
    before, source = state_of(known.backbone), file_hash(known.adapter)
    shutil.rmtree(known.run, ignore_errors=True)
    known.run.mkdir(parents=True)
    wall, process = time.perf_counter(), time.process_time()
    outcome = row.run(known)
    waited, seconds = time.perf_counter() - wall, time.process_time() - process
    start = time.process_time()
    figures = agreement(scored, second_observer) if row.name == SECOND else _scored(known, outcome, scored)
    took = {"seconds": seconds, "busy": seconds / waited if row.budgeted else 1.0}
    took["scoring_seconds"] = time.process_time() - start
    header = read_header(known.adapter)
    return {"steps": 0, "lr": 0.0, "fell_back": None, "metric": known.pair.metric, **outcome.facts, **figures} | {
        **took,
        "source_adapter": header["tensors_sha256"][:12],
        "source_unchanged": file_hash(known.adapter) == source,
        "backbone_unchanged": state_of(known.backbone) == before,
    }


def _scored(known: Known, outcome: Outcome, scored: Scored) -> dict[str, Any]:
    grafted = load_adapter(outcome.adapter, known.backbone)

    def predict(path: Path) -> Segmentation:
        if outcome.method is not None:
            return segment_adapted(path, adapter=grafted, method=outcome.method, progress=False)[0]
        return segment(path, adapter=grafted, progress=False, **outcome.use)

    try:
        return score(known.pair.metric, scored, predict)
    finally:
        grafted.detach()


def many(group: Mapping[str, Any]) -> Iterator[Task]:
    """All rows of one source domain and seed, pair by pair; the source adapter is trained at the first.

    A run that fails gives {"failed": ..., the fields of ``KEY``}, and the backbone is loaded anew.
    """
    tasks: Sequence[Task] = group["tasks"]
    backbone = open_backbone(group["backbone"])
    for name in dict.fromkeys(task["set"] for task in tasks):
        pair, own = PAIRS[name], [task for task in tasks if task["set"] == name]
        work = Path(own[0]["work"])
        ready = prepare(pair, own[0]["seed"], work, trial=own[0]["trial"])
        adapter = source_adapter(pair, ready.source, own[0], group["backbone"])
        for task in own:
            run = run_folder(work, name, task["seed"], task["method"])
            shared = {"pair": pair, "adapter": adapter, "images": ready.images, "sets": ready.sets, "run": run}
            shared |= {"backbone": backbone, "backbone_name": group["backbone"]}
            known = Known(**shared, budget=task["budget"], seed=task["seed"])
            row = ROWS[task["method"]]
            labelled = {"few": ready.labelled["few"], "all": ready.labelled["all"]}
            counts = {f"{FEW} target labels": labelled["few"], "all target labels": labelled["all"]}
            try:
                found = one(known, row, ready.scored) | {"labelled": counts.get(row.name)}
            except Exception as error:  # any method may be broken, and the others are to be measured all the same
                found = {"failed": f"{type(error).__name__}: {error}"[:1000]}
                backbone = open_backbone(group["backbone"])
            yield {key: task[key] for key in KEY} | found
