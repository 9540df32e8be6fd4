"""The report of an adaptation: before and after on the judging tiles, criteria over time, what was decided and why.

There is no truth in it: the target has no labels.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.criteria import Judged, dice
from samgraft.recipes.adaptation.result import AdaptResult, Round
from samgraft.recipes.config import to_yaml
from samgraft.recipes.report import Panel, Report, versions

if TYPE_CHECKING:
    from samgraft.recipes.adaptation.session import Session

MOST_PICTURES = 8
_SHOWN = ("score", "agreement", "anchor", "box_iou", "predicted_iou", "confidence", "foreground", "share_factor")


def write_page(session: "Session", result: AdaptResult, config: AdaptConfig) -> None:
    """Write ``report.html`` into the work folder.

    Raises:
        OutputError: it cannot be written.
    """
    after = session.before
    if session.best is not None:
        after, _ = session.judged({name: value.to(session.device) for name, value in session.best.items()})
    report = Report("samgraft adaptation without labels", subtitle=str(result.adapter.resolve()))
    decided = (
        f"Source adapter kept. {result.reason}."
        if result.fell_back
        else (
            f"Adapted: step {result.best_step} has the best score of those that the guard trusts. Stopped since "
            f"{result.reason}."
        )
    )
    voice = f"the guide {session.guide} labelled at first" if session.guide else f"images are seen {session.look}"
    report.text("What was decided", f"{decided} In this run {voice}.")
    panels = before_and_after(session, session.before, after)
    classes = {1: "object"} if session.reader.separates else dict(session.reader.recorded.classes)
    title = "Before (left) and after (right), tiles that changed most" if panels else "No tile to show"
    report.panels(title, panels, classes=classes)
    report.figure("Criteria over time", curves(result.rounds), caption="no label was looked at for any of them")
    rows = [
        [one.step, *(float(one.figures.get(name, float("nan"))) for name in _SHOWN), one.refused or "trusted"]
        for one in result.rounds
    ]
    rows[0][-1] = "source adapter"
    report.table("Rounds", ["step", *_SHOWN, "guard"], rows)
    report.code("Settings", to_yaml(config.to_dict()))
    report.table("Versions", ["what", "version"], list(versions().items()))
    report.save(result.report)


def before_and_after(session: "Session", before: Judged, after: Judged) -> list[Panel]:
    """Two panels per tile, the source adapter's answer and the new one, of the tiles where they differ most."""
    depth = len(before.classes) // len(session.judge.tiles)
    triples = list(zip(before.classes, after.classes, session.judge.known(), strict=True))
    same = [dice(first, second, known) for first, second, known in triples]
    empty = [not bool(((first > 0) | (second > 0)).any()) for first, second, _ in triples]
    order = sorted(range(len(same)), key=lambda i: (empty[i], same[i]))[:MOST_PICTURES]
    panels = []
    for index in order:
        tile = index // depth
        image = session.judge.tiles.images[tile]
        picture = (image if image.ndim == 3 else image[:, index % depth]).numpy()
        picture = picture[1] if session.reader.recorded.recipe.neighbours else picture
        for word, one in (("before", before), ("after", after)):
            labels = one.labels[index].numpy().astype(np.int32)
            caption = f"Dice before to after {same[index]:.2f}" if word == "after" else ""
            panels.append(
                Panel(
                    title=f"{session.judge.tiles.names[tile]}, {word}",
                    image=picture,
                    predicted=labels,
                    instances=session.reader.separates,
                    caption=caption,
                )
            )
    return panels


def curves(rounds: Sequence[Round]) -> bytes:
    """PNG of the criteria over steps; refused rounds are crossed out."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = [one.step for one in rounds]
    for name in ("score", "agreement", "anchor", "box_iou", "confidence"):
        axes.plot(steps, [one.figures.get(name, float("nan")) for one in rounds], marker="o", ms=3, label=name)
    refused = [one for one in rounds if one.refused]
    axes.plot([one.step for one in refused], [one.score for one in refused], "kx", ms=8, label="refused")
    axes.set_xlabel("step")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, ncols=3)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
