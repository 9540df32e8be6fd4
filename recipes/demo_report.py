"""What the demonstration shows: one picture (overview.png) and one HTML file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.domains.atomic import atomic_path
from samgraft.domains.opening import open_scene
from samgraft.recipes.look import look_at
from samgraft.recipes.report import Panel, Report, curves

if TYPE_CHECKING:
    from samgraft.recipes.demo import DemoPart

Picture = NDArray[np.uint8]
COLOURS = ((255, 92, 64), (46, 196, 255), (255, 200, 40), (80, 220, 120), (210, 110, 255))
"""Of classes; objects share one."""
OBJECT = (255, 238, 40)
_INK = "#1c2430"


def overview(path: Path, volume: "DemoPart", scene: "DemoPart") -> Path:
    """Draw input and result of both halves side by side, and write a PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    index = best_slice(volume.truth)
    gray, labels = slice_of(volume, index)
    rgb = picture_of(scene)
    figure = Figure(figsize=(12.8, 7.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 2.02])
    dice = ", ".join(f"{k.removeprefix('Dice ')} {v:.2f}" for k, v in volume.figures.items())
    spots: list[tuple[Any, Picture, str]] = [
        (grid[0, 0], gray, f"volume, slice {index}"),
        (grid[0, 1], paint(gray, labels, truth=slice_truth(volume, index)), f"found (Dice {dice})"),
        (grid[1, 0], crop(rgb), "map, a part"),
        (grid[1, 1], paint(crop(rgb), crop(scene.result.labels), objects=True, truth=crop(scene.truth)), "found"),
    ]
    whole = f"all of it: {len(scene.result.instances)} polygons (IoU {scene.figures['IoU buildings']:.2f})"
    spots.append((grid[:, 2], paint(rgb, scene.result.labels, objects=True), whole))
    for place, picture, title in spots:
        axes = figure.add_subplot(place)
        axes.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < 200 else "antialiased")
        axes.set_title(title, fontsize=10.5, color=_INK, loc="left")
        axes.set_axis_off()
    figure.suptitle(
        "samgraft demo: two grafts on one frozen backbone, no click; white: truth, colour: result",
        fontsize=12,
        color=_INK,
        x=0.01,
        ha="left",
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    return path


def write_report(path: Path, volume: "DemoPart", scene: "DemoPart") -> Path:
    """Write the HTML report of both halves.

    Raises:
        OutputError: the file cannot be written.
    """
    report = Report("samgraft demo", subtitle="Made-up images; grafts trained for seconds; no prompt at test time")
    note = "One image each (n = 1), drawn by the same program as the training images: this shows the path, not quality."
    rows = [(part.name, name, value, 1) for part in (volume, scene) for name, value in part.figures.items()]
    report.table("Figures", ["image", "figure", "value", "n"], rows, note=note)
    depth = volume.truth.shape[0]
    slices = [int(v) for v in np.linspace(0.15, 0.85, 8) * (depth - 1)]
    report.panels("Volume", [_slice_panel(volume, i) for i in slices], classes=dict(volume.result.classes))
    report.panels(f"Map ({len(scene.result.instances)} objects)", _quarters(scene), side=720)
    for part in (volume, scene):
        _training(report, part)
    files = [(str(file.name), f"{file.stat().st_size:,} bytes") for part in (volume, scene) for file in part.written]
    report.table("Files", ["file", "size"], files)
    return report.save(path)


def _training(report: Report, part: "DemoPart") -> None:
    """Curves and what was trained, of one half."""
    history = part.run / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
    drawn = curves(rows)
    if drawn is not None:
        report.figure(f"Training of the {part.name}", drawn, caption=f"{part.seconds:.0f} s")
    table = part.run / "trainable.txt"
    if table.is_file():
        report.code(f"Trainable parts of the {part.name}", table.read_text())


def _quarters(part: "DemoPart") -> list[Panel]:
    """The map in four pictures, large enough to judge an outline."""
    picture, labels, truth = picture_of(part), part.result.labels.astype(np.int32), part.truth.astype(np.int32)
    rows, cols = (n // 2 for n in labels.shape)
    return [
        Panel(title=title, image=picture[at], predicted=labels[at], truth=truth[at], instances=True)
        for title, at in {
            "north-west": np.s_[:rows, :cols],
            "north-east": np.s_[:rows, cols:],
            "south-west": np.s_[rows:, :cols],
            "south-east": np.s_[rows:, cols:],
        }.items()
    ]


def _slice_panel(part: "DemoPart", index: int) -> Panel:
    gray, labels = slice_of(part, index)
    return Panel(
        title=f"slice {index}", image=gray, predicted=labels, truth=slice_truth(part, index), caption="white: truth"
    )


def best_slice(truth: NDArray[Any]) -> int:
    """Slice that shows every class at its largest, as far as one slice can."""
    area = np.array([(truth == value).sum(axis=(1, 2)) for value in np.unique(truth[truth > 0])], dtype=np.float64)
    return int((area / area.max(axis=1, keepdims=True)).sum(axis=0).argmax()) if len(area) else len(truth) // 2


def slice_of(part: "DemoPart", index: int) -> tuple[Picture, NDArray[np.int32]]:
    """Slice ``index`` of the first axis: (H, W, 3) gray picture, and (H, W) result."""
    scene = open_scene(part.image)
    _, height, width = scene.grid.shape
    look = look_at(scene)
    raw = scene.read((slice(index, index + 1), slice(0, height), slice(0, width)), look.channels)[:, 0]
    return _bytes(look.apply(raw)), part.result.labels[index].astype(np.int32)


def slice_truth(part: "DemoPart", index: int) -> NDArray[np.int32]:
    """True labels of a slice."""
    return np.asarray(part.truth[index], dtype=np.int32)


def picture_of(part: "DemoPart") -> Picture:
    """The whole map as (H, W, 3)."""
    scene = open_scene(part.image)
    look = look_at(scene)
    return _bytes(look.apply(scene.read(channels=look.channels)))


def _bytes(image: NDArray[np.float32]) -> Picture:
    return np.ascontiguousarray((np.moveaxis(image, 0, -1) * 255 + 0.5).astype(np.uint8))


def crop(array: NDArray[Any], side: int = 170) -> NDArray[Any]:
    """A square from the middle, of at most ``side`` pixels."""
    starts = [max(0, (n - side) // 2) for n in array.shape[:2]]
    return array[starts[0] : starts[0] + side, starts[1] : starts[1] + side]


def paint(
    picture: Picture, labels: NDArray[Any], *, objects: bool = False, truth: NDArray[Any] | None = None
) -> Picture:
    """Tint labels and draw their outlines, ``truth`` as white outlines below; the picture is enlarged."""
    factor = 4 if max(picture.shape[:2]) <= 200 else 2
    big = picture.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.float32)
    if truth is not None:
        big[_rim(_enlarge(truth, factor), 1)] = 255
    found = _enlarge(labels, factor)
    rim = _rim(found, 2)
    shown = np.minimum(found, 1) if objects else found
    for value in np.unique(shown[shown > 0]):
        colour = np.array(OBJECT if objects else COLOURS[int(value - 1) % len(COLOURS)], dtype=np.float32)
        own = shown == value
        big[own] = 0.74 * big[own] + 0.26 * colour
        big[own & rim] = colour
    return big.clip(0, 255).astype(np.uint8)


def _enlarge(labels: NDArray[Any], factor: int) -> NDArray[np.int64]:
    return labels.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.int64)


def _rim(labels: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Pixels of a label within ``width`` of another one."""
    edge = (ndimage.maximum_filter(labels, 3) != labels) | (ndimage.minimum_filter(labels, 3) != labels)
    if width > 1:
        edge = ndimage.binary_dilation(edge, iterations=width - 1)
    return np.asarray(edge & (labels > 0))
