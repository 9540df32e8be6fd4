"""One self-contained HTML file to look at: overlays with contours, curves, metrics with n, what was trained, how.

Pictures are embedded as PNG; nothing is loaded from elsewhere, so the file can be mailed or archived.
"""

import base64
import contextlib
import html
import io
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.errors import InputError, OutputError, ShapeError

PALETTE = ((255, 92, 64), (46, 196, 255), (255, 200, 40), (80, 220, 120), (210, 110, 255), (255, 130, 190))
"""Contour colours of classes 1, 2, ... (red, green, blue)."""
TRUTH = (255, 255, 255)
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#f6f7f9;margin:0}
main{max-width:1180px;margin:0 auto;padding:28px 22px 60px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:18px;margin:34px 0 10px;border-bottom:1px solid #d5dae1;padding-bottom:4px}
.sub{color:#5a6675;margin:0 0 8px}.note{color:#5a6675;font-size:13px;margin:6px 0}
table{border-collapse:collapse;background:#fff;font-size:14px}th,td{padding:5px 14px 5px 10px;border-bottom:1px solid #e4e8ed;text-align:left}
th{background:#eef1f5;font-weight:600}td.num,th.num{text-align:right;font-variant-numeric:tabular-nums}
.panels{display:grid;gap:14px}
figure{margin:0;background:#fff;border:1px solid #dfe4ea;border-radius:6px;overflow:hidden}
figure img{display:block;width:100%;image-rendering:auto;background:#000}figure.wide{max-width:900px}figure.wide img{background:#fff}
figcaption{padding:7px 10px;font-size:13px;overflow-wrap:anywhere}
.key span{display:inline-block;margin-right:16px;font-size:13px}.key i{display:inline-block;width:18px;height:4px;margin-right:6px;vertical-align:middle;border:1px solid #8a94a0}
pre{background:#fff;border:1px solid #dfe4ea;border-radius:6px;padding:12px;font-size:12.5px;overflow:auto;max-height:480px}
"""  # noqa: E501


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One slice or tile with its masks."""

    title: str
    image: NDArray[Any]
    """(H, W) or (H, W, 3) or (3, H, W); uint8, or float in [0, 1]."""
    predicted: NDArray[np.integer]
    """(H, W) labels."""
    truth: NDArray[np.integer] | None = None
    """(H, W) labels, or None; -1 is unknown."""
    instances: bool = False
    """True when labels are object numbers: all contours get one colour."""
    caption: str = ""


def overlay(panel: Panel, *, side: int = 384) -> NDArray[np.uint8]:
    """Draw contours on the image: truth white, prediction in colour.

    Args:
        panel: Image and labels.
        side: Small images are enlarged by a whole factor up to about this many pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ShapeError: labels and image differ in size.
    """
    image = _rgb(panel.image)
    for labels in (panel.predicted, panel.truth):
        if labels is not None and labels.shape != image.shape[:2]:
            raise ShapeError(
                f"{panel.title}: labels are {labels.shape}, the image is {image.shape[:2]}; give both on one grid"
            )
    shrink = max(1, int(np.ceil(max(image.shape[:2]) / (3 * side))))
    factor = max(1, side // max(image.shape[:2])) if shrink == 1 else 1
    picture = _resample(image, factor, shrink)
    if panel.truth is not None:
        _draw(picture, _resample(panel.truth, factor, shrink), panel.instances, TRUTH, width=1 if factor == 1 else 2)
    _draw(picture, _resample(panel.predicted, factor, shrink), panel.instances, None, width=2)
    return picture


def _rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of any accepted layout."""
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[-1] != 3:
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ShapeError(f"image is {image.shape}; expected (H, W), (H, W, 3) or (3, H, W)")
    if image.dtype != np.uint8:
        image = (np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image)


def _resample(array: NDArray[Any], factor: int, shrink: int) -> NDArray[Any]:
    array = array[::shrink, ::shrink]
    return np.ascontiguousarray(array.repeat(factor, axis=0).repeat(factor, axis=1))


def _draw(
    picture: NDArray[np.uint8],
    labels: NDArray[np.integer],
    instances: bool,
    colour: Sequence[int] | None,
    *,
    width: int,
) -> None:
    """Paint the inner rims of all labels into ``picture``."""
    from scipy import ndimage

    rim = np.zeros(labels.shape, dtype=bool)
    rim[:-1] |= labels[:-1] != labels[1:]
    rim[1:] |= labels[1:] != labels[:-1]
    rim[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    rim[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    if width > 1:
        rim = ndimage.binary_dilation(rim, iterations=width - 1)
    rim &= labels > 0
    if colour is not None:
        picture[rim] = colour
        return
    index = np.zeros_like(labels[rim]) if instances else (labels[rim] - 1) % len(PALETTE)
    picture[rim] = np.array(PALETTE, dtype=np.uint8)[index]


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def curves(history: Sequence[Mapping[str, float]]) -> bytes | None:
    """PNG of training loss (left) and validation figures (right) over steps; None without a record."""
    if not history:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plot(left, history, ["train/loss"], "training loss")
    names = sorted({k for row in history for k in row if k.startswith("val/") and k != "val/n"})
    _plot(right, history, names, "validation")
    right.set_ylim(0, 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _plot(axes: Any, history: Sequence[Mapping[str, float]], names: Sequence[str], title: str) -> None:
    for name in names:
        points = [(row["step"], row[name]) for row in history if name in row]
        if points:
            marker = "o" if len(points) < 30 else None
            axes.plot(
                *zip(*points, strict=True), label=name.removeprefix("val/"), linewidth=1.6, marker=marker, markersize=3
            )
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False)


class Report:
    """Collects sections in order and writes them as one HTML file."""

    def __init__(self, title: str, *, subtitle: str = "") -> None:
        """Start an empty report."""
        self.title, self.subtitle = title, subtitle
        self._parts: list[str] = []

    def text(self, heading: str, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p>")

    def code(self, heading: str, text: str) -> None:
        """Add text in fixed width, lines kept."""
        self._parts.append(f"<h2>{html.escape(heading)}</h2><pre>{html.escape(text)}</pre>")

    def table(self, heading: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, note: str = "") -> None:
        """Add a table; floats get three decimals, numbers are right-aligned."""
        numeric = [bool(rows) and all(isinstance(r[i], (int, float)) for r in rows) for i in range(len(header))]
        style = [' class="num"' if n else "" for n in numeric]
        head = "".join(f"<th{c}>{html.escape(h)}</th>" for c, h in zip(style, header, strict=True))
        lines = []
        for row in rows:
            cells = "".join(f"<td{c}>{html.escape(_cell(v))}</td>" for c, v in zip(style, row, strict=True))
            lines.append(f"<tr>{cells}</tr>")
        remark = f'<p class="note">{html.escape(note)}</p>' if note else ""
        self._parts.append(f"<h2>{html.escape(heading)}</h2><table><tr>{head}</tr>{''.join(lines)}</table>{remark}")

    def figure(self, heading: str, picture: bytes, *, caption: str = "") -> None:
        """Add a PNG over the whole width."""
        self._parts.append(f"<h2>{html.escape(heading)}</h2>{_figure(picture, caption, 'wide')}")

    def panels(
        self, heading: str, panels: Sequence[Panel], *, classes: Mapping[int, str] | None = None, side: int = 384
    ) -> None:
        """Add overlays of about ``side`` pixels with a key of colours."""
        pictures = [png(overlay(p, side=side)) for p in panels]
        titles = [" - ".join(filter(None, (p.title, p.caption))) for p in panels]
        figures = "".join(_figure(picture, title, "") for picture, title in zip(pictures, titles, strict=True))
        columns = f"grid-template-columns:repeat(auto-fill,minmax(min(100%,{2 * side // 3}px),1fr))"
        key = _key(panels, classes or {})
        self._parts.append(f'<h2>{html.escape(heading)}</h2>{key}<div class="panels" style="{columns}">{figures}</div>')

    def render(self) -> str:
        """The HTML text."""
        title = html.escape(self.title)
        subtitle = html.escape(self.subtitle)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
            f'<body><main><h1>{title}</h1><p class="sub">{subtitle}</p>{"".join(self._parts)}</main></body></html>\n'
        )

    def save(self, path: Path | str) -> Path:
        """Write atomically; returns the path.

        Raises:
            OutputError: the file cannot be written; nothing half written stays.
        """
        path = Path(path)
        write_text(path, self.render())
        return path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary name in the same folder, then rename it.

    Raises:
        OutputError: not writable; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}; choose a writable folder with enough space") from error


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _figure(picture: bytes, caption: str, kind: str) -> str:
    data = base64.b64encode(picture).decode("ascii")
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}"><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">{text}</figure>'
    )


def _key(panels: Sequence[Panel], classes: Mapping[int, str]) -> str:
    entries = [("truth", TRUTH)] if any(p.truth is not None for p in panels) else []
    if any(p.instances for p in panels):
        entries.append(("predicted objects", PALETTE[0]))
    else:
        entries += [
            (f"predicted {name}", PALETTE[(value - 1) % len(PALETTE)]) for value, name in classes.items() if value
        ]
    marks = "".join(
        f'<span><i style="background:rgb{colour}"></i>{html.escape(name)}</span>' for name, colour in entries
    )
    return f'<p class="key">{marks}</p>'


def versions() -> dict[str, str]:
    """Versions of what ran: Python, samgraft and the main libraries."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("samgraft", "torch", "transformers", "peft", "monai", "lightning", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


SPLIT = "split.png"
"""Picture in the run folder of what trains and what validates, where they are parts of one raster."""


def report_run(run: Path | str, output: Path | str | None = None) -> Path:
    """Write the report of a training run from what its folder holds.

    Args:
        run: Folder of ``samgraft fit`` (config.yaml, history.jsonl, metrics.json, samples.npz, trainable.txt).
        output: HTML file; by default ``report.html`` in the run folder.

    Raises:
        InputError: not a run folder.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} has no config.yaml; expected the run folder of samgraft fit")
    history = [json.loads(line) for line in _read(run / "history.jsonl").splitlines() if line.strip()]
    metrics = json.loads(_read(run / "metrics.json") or "{}")
    subtitle = f"{run.resolve()} - written {time.strftime('%Y-%m-%d %H:%M')}"
    report = Report(f"samgraft run {run.resolve().name}", subtitle=subtitle)
    _validation(report, metrics)
    panels = load_panels(run / "samples.npz")
    if panels:
        classes = {int(k): v for k, v in metrics.get("classes", {}).items()}
        report.panels("Validation samples", panels, classes=classes)
    if (run / SPLIT).is_file():
        caption = "blue validates, dark is not seen in training"
        report.figure("Where it trained", (run / SPLIT).read_bytes(), caption=caption)
    picture = curves(history)
    if picture is not None:
        report.figure("Training curves", picture, caption="metrics are of validation cases only")
    _per_case(report, metrics)
    report.code("What is trainable", _read(run / "trainable.txt") or "not recorded")
    report.code("Configuration", _read(run / "config.yaml"))
    recorded = metrics.get("versions") or versions()
    report.table("Versions", ["what", "version"], list(recorded.items()))
    return report.save(output or run / "report.html")


def _validation(report: Report, metrics: Mapping[str, Any]) -> None:
    if not metrics:
        report.text("Validation", "No validation has finished yet.")
        return
    rows = [(s["name"], s["mean"], s["std"], s["n"]) for s in metrics["summaries"]]
    note = (
        f"Best step {metrics.get('step')}, chosen on these validation cases. Every figure is a mean over n cases (or "
        "patients, where a patient has several) on the case's own grid; AP is over the pooled objects of n cases. A "
        "class absent in both truth and prediction counts 1, in only one 0."
    )
    if metrics.get("from_ground_truth"):
        note += " Prompts were taken from the ground truth."
    report.table("Validation", ["figure", "mean", "std", "n"], rows, note=note)


def _per_case(report: Report, metrics: Mapping[str, Any]) -> None:
    if metrics.get("scores"):
        keys = ("case", "class_name", "dice", "iou", "truth_voxels", "predicted_voxels")
        rows = [tuple(s[k] for k in keys) for s in metrics["scores"]]
        rows.sort(key=lambda r: r[2])
        header = ["case", "class", "Dice", "IoU", "true px", "predicted px"]
        report.table("Per case, worst first", header, rows[:60], note=f"{min(60, len(rows))} of {len(rows)} rows")


def save_panels(path: Path, panels: Sequence[Panel]) -> None:
    """Keep panels in one .npz (arrays and JSON text, no pickle), written atomically."""
    arrays: dict[str, NDArray[Any]] = {}
    facts = []
    for i, panel in enumerate(panels):
        arrays[f"image{i}"], arrays[f"predicted{i}"] = _rgb(panel.image), panel.predicted.astype(np.int32)
        if panel.truth is not None:
            arrays[f"truth{i}"] = panel.truth.astype(np.int32)
        facts.append({"title": panel.title, "caption": panel.caption, "instances": panel.instances})
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}; choose a writable folder with enough space") from error


def load_panels(path: Path) -> list[Panel]:
    """Read what ``save_panels`` wrote; an absent file gives an empty list."""
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as data:
        facts = json.loads(bytes(data["facts"]).decode())
        panels = []
        for i, fact in enumerate(facts):
            truth = data[f"truth{i}"] if f"truth{i}" in data else None
            panels.append(Panel(image=data[f"image{i}"], predicted=data[f"predicted{i}"], truth=truth, **fact))
    return panels


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
