"""``samgraft demo``: the whole path on two made-up images, without a download and without a click.

Draws training cases, trains two small grafts on the frozen embedded backbone, segments two images that no training has
seen, and writes masks, polygons, a report and a picture. Everything comes from ``samgraft.recipes.phantoms``.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones.base import Backbone
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import OutputError
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.demo_report import overview, write_report
from samgraft.recipes.engine.run import segment
from samgraft.recipes.instances import average_precision, match_instances
from samgraft.recipes.metrics import overlap
from samgraft.recipes.phantoms import (
    ABDOMEN_CLASSES,
    Abdomen,
    Village,
    make_abdomen,
    make_village,
    write_abdomen,
    write_village,
)
from samgraft.recipes.training import fit

SHOWN = 1000
"""Seed of the shown images; training cases have seeds below it."""
GRAFTS = {"lora": {"rank": 4, "blocks": "last:2"}}
"""What is put into the encoder; the blocks before it need no gradient."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How large the demonstration is; the defaults take about two minutes on two cores."""

    volumes: int = 5
    """Training volumes; one more validates."""
    scenes: int = 4
    """Training scenes; one more validates."""
    seconds: float = 45.0
    """Longest training time of each graft."""
    steps: int = 140
    """Most steps of each graft."""
    size: int = 96
    """Side of the network input."""
    batch: int = 4
    """Training images per step."""
    volume_shape: tuple[int, int, int] = (24, 128, 128)
    """(D, H, W) of the volumes."""
    scene_shape: tuple[int, int] = (512, 512)
    """(H, W) of the scenes."""
    progress: bool = True
    """Show progress bars."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoPart:
    """One of the two halves: what was shown, found and measured."""

    name: str
    image: Path
    result: Segmentation
    truth: NDArray[Any]
    """Labels on the same grid."""
    figures: dict[str, float] = field(default_factory=dict)
    """Name of a metric -> its value on this one image."""
    adapter: Path
    run: Path
    """Folder of the training run."""
    written: tuple[Path, ...] = ()
    seconds: float = 0.0
    """Training time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoResult:
    """Everything that was made."""

    volume: DemoPart
    scene: DemoPart
    report: Path
    picture: Path
    seconds: float


def run_demo(
    out: Path | str,
    *,
    config: DemoConfig | None = None,
    backbone: Callable[[], Backbone] | None = None,
    say: Say = print,
) -> DemoResult:
    """Make, train, segment, report.

    Args:
        out: Folder for everything; it may exist, an older demonstration in it is replaced.
        config: How large.
        backbone: Makes a backbone (called once per graft); None takes graft-tiny.
        say: Where lines go.

    Raises:
        OutputError: the folder cannot be written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: a second thread gains little, and loses much beside other programs
    try:
        return _run(Path(out), config or DemoConfig(), backbone, say)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, config: DemoConfig, backbone: Callable[[], Backbone] | None, say: Say) -> DemoResult:
    """The three steps."""
    began = time.monotonic()
    _prepare(out)
    say(f"1/3  a CT-like volume: {config.volumes} training volumes, liver and kidneys, one more to look at")
    volume = _volume(out, config, backbone)
    _tell(volume, say)
    say(f"2/3  a map: {config.scenes} training scenes with building polygons, one more to look at")
    scene = _scene(out, config, backbone)
    _tell(scene, say)
    say("3/3  report")
    picture = overview(out / "overview.png", volume, scene)
    report = write_report(out / "report.html", volume, scene)
    seconds = time.monotonic() - began
    for path in (report, picture):
        say(f"     wrote {path}")
    say(f"done in {seconds:.0f} s; made-up images are easy: these figures say that the path works, not how good it is")
    return DemoResult(volume=volume, scene=scene, report=report, picture=picture, seconds=seconds)


def _prepare(out: Path) -> None:
    """Make the folder; remove the runs of an older demonstration."""
    import shutil

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("training", "runs"):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / "runs").mkdir()
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error}; choose another folder with -o") from error


def _tell(part: DemoPart, say: Say) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in part.figures.items())
    size = part.adapter.stat().st_size / 2**20
    say(f"     trained {part.seconds:.0f} s; adapter {size:.1f} MB: {part.adapter}")
    say(f"     segmented {part.image} without a prompt (n = 1, made up): {figures}")
    for path in part.written:
        say(f"     wrote {path}")


# --- the volume


def _volume(out: Path, config: DemoConfig, backbone: Callable[[], Backbone] | None) -> DemoPart:
    data = out / "training" / "abdomen"
    _training_volumes(data, config)
    shown = make_abdomen(SHOWN, shape=config.volume_shape)
    image = out / "abdomen.nii.gz"
    write_abdomen(shown, image, out / "abdomen_truth.nii.gz")
    run_folder, seconds = out / "runs" / "abdomen", time.monotonic()
    adapter = fit(volume_recipe(data, config), run_folder, backbone=_make(backbone), report=False).adapter
    seconds = time.monotonic() - seconds
    mask = out / "mask.nii.gz"
    result = segment(image, adapter=adapter, backbone=_make(backbone), output=mask, progress=config.progress)
    figures = {
        f"Dice {name}": overlap(result.labels == value, shown.labels == value)[0]
        for value, name in ABDOMEN_CLASSES.items()
    }
    return DemoPart(
        name="CT-like volume",
        image=image,
        result=result,
        truth=shown.labels,
        figures=figures,
        adapter=adapter,
        run=run_folder,
        written=(mask,),
        seconds=seconds,
    )


def _training_volumes(data: Path, config: DemoConfig) -> None:
    """Write a data set in nnU-Net layout."""
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    names = [f"abdomen_{seed:02d}" for seed in range(config.volumes + 1)]
    for seed, name in enumerate(names):
        case: Abdomen = make_abdomen(seed, shape=config.volume_shape)
        write_abdomen(case, data / "imagesTr" / f"{name}_0000.nii.gz", data / "labelsTr" / f"{name}.nii.gz")
    labels = {"background": 0, **{name: value for value, name in ABDOMEN_CLASSES.items()}}
    header = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(header, indent=1))
    (data / "splits.json").write_text(json.dumps([{"train": names[:-1], "val": names[-1:]}]))


def volume_recipe(data: Path, config: DemoConfig) -> FitConfig:
    """How the volume's graft is trained."""
    return FitConfig(
        task=TaskConfig(grafts=dict(GRAFTS), class_weights=(1.0, 1.0, 3.0), lr=4e-3, warmup=0.1),
        data=DataConfig(layout="nnunet", path=str(data), size=config.size, batch_size=config.batch, foreground=0.75),
        augment=AugmentConfig(rotate=8, shift=0.05, scale=0.1),
        train=_schedule(config),
    )


# --- the scene


def _scene(out: Path, config: DemoConfig, backbone: Callable[[], Backbone] | None) -> DemoPart:
    data = out / "training" / "village"
    _training_scenes(data, config)
    shown = make_village(SHOWN, shape=config.scene_shape)
    image = out / "village.tif"
    write_village(shown, image, out / "village_truth.geojson")
    run_folder, seconds = out / "runs" / "village", time.monotonic()
    adapter = fit(scene_recipe(data, config), run_folder, backbone=_make(backbone), report=False).adapter
    seconds = time.monotonic() - seconds
    outputs = (out / "buildings.gpkg", out / "buildings.geojson")
    result = segment(image, adapter=adapter, backbone=_make(backbone), output=outputs, progress=config.progress)
    scores = np.array([record.score for record in result.instances], dtype=np.float32)
    match = match_instances("village", result.labels.astype(np.int64), scores, shown.buildings)
    figures = {
        "IoU buildings": overlap(result.labels > 0, shown.buildings > 0)[1],
        "AP50": average_precision([match]),
        "objects": float(len(result.instances)),
        "true objects": float(match.num_truth),
    }
    return DemoPart(
        name="map",
        image=image,
        result=result,
        truth=shown.buildings,
        figures=figures,
        adapter=adapter,
        run=run_folder,
        written=outputs,
        seconds=seconds,
    )


def _training_scenes(data: Path, config: DemoConfig) -> None:
    """Write rasters with polygons."""
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    names = [f"village_{seed:02d}" for seed in range(config.scenes + 1)]
    for seed, name in enumerate(names):
        case: Village = make_village(seed, shape=config.scene_shape)
        write_village(case, data / "images" / f"{name}.tif", data / "labels" / f"{name}.geojson")
    (data / "splits.json").write_text(json.dumps([{"train": names[:-1], "val": names[-1:]}]))


def scene_recipe(data: Path, config: DemoConfig) -> FitConfig:
    """How the map's graft is trained."""
    return FitConfig(
        task=TaskConfig(
            kind="instance",
            class_names=("building",),
            grafts=dict(GRAFTS),
            class_weights=(1.0, 1.0, 2.0),
            border=2,
            head_options={"full_resolution": True},
            min_area=30,
            lr=4e-3,
            warmup=0.1,
        ),
        data=DataConfig(
            layout="raster_vector",
            path=str(data),
            size=config.size,
            window=config.size,
            batch_size=config.batch,
            foreground=0.9,
        ),
        augment=AugmentConfig(flip_x=True, flip_y=True, quarter_turns=True, rotate=20, colour=0.08),
        train=_schedule(config),
    )


def _schedule(config: DemoConfig) -> TrainConfig:
    """A short run with one validation at its end."""
    return TrainConfig(
        steps=config.steps,
        minutes=config.seconds / 60,
        val_every=config.steps,
        accelerator="cpu",
        progress=config.progress,
        cache=False,
    )


def _make(backbone: Callable[[], Backbone] | None) -> Backbone | None:
    return None if backbone is None else backbone()
