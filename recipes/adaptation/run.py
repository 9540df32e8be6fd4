"""An adaptation from a source adapter and target images to an adapted bundle: what ``samgraft adapt`` does.

The best state that the guard trusts is written; if there is none, the source adapter's own tensors are, byte by byte,
and the header says why.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.bundle import BundleMeta, read_header, read_meta, replace_meta, save_bundle
from samgraft.domains.atomic import atomic_path, require_folder
from samgraft.errors import CheckpointError, ConfigError, InputError, OutputError
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.guides import facts
from samgraft.recipes.adaptation.looks import PLAIN
from samgraft.recipes.adaptation.page import write_page
from samgraft.recipes.adaptation.result import AdaptResult, Round
from samgraft.recipes.adaptation.session import Session, load_state
from samgraft.recipes.callbacks import frozen_hashes
from samgraft.recipes.config import DataConfig, to_yaml
from samgraft.recipes.report import write_text

Tell = Callable[[str], None]
CONFIG = "config.yaml"
KEPT = ("input",)
"""What of the source header's extras is true of the adapted one too; statistics and calibrations are not."""


def adapt(
    source: Path,
    images: Sequence[Path] | DataConfig,
    out: Path,
    config: AdaptConfig | None = None,
    *,
    work: Path | None = None,
    resume: bool = False,
    backbone: Backbone | None = None,
    report: bool = True,
    tell: Tell | None = None,
) -> AdaptResult:
    """Adapt without labels.

    Args:
        source: Adapter file; it is read only.
        images: Target images: files or folders of them; or a data set's configuration, of which only the images of the
            training side are listed. Labels are never opened.
        out: The bundle to write.
        config: Everything that decides the run; None takes the defaults, or what a resumed run was started with.
        work: Folder for settings, state, history and report; None puts ``<name of out>.adapt`` beside ``out``.
        resume: Continue a run that was stopped in ``work``, or start it if it never wrote a state.
        backbone: Ready backbone without grafts; None loads the one that the adapter names. It comes back bare.
        report: Write the HTML page.
        tell: Takes lines about the progress; None is silent but for a bar on a terminal.

    Raises:
        InputError: no image, or nothing to resume.
        OutputError: the folder holds a run already and ``resume`` is False, or nothing can be written.
        ConfigError: settings that do not fit the adapter, or other ones than those of the run that is resumed.
        CheckpointError: a damaged adapter, one of another backbone, or a frozen tensor changed.
    """
    source, out = Path(source), Path(out)
    meta, header = read_meta(source), read_header(source)
    require_folder(out)
    if out.resolve() == source.resolve():
        raise OutputError(f"{out} is the source adapter, which stays as it is; name another file")
    folder = Path(work) if work is not None else out.with_name(f"{out.stem}.adapt")
    facts = {"source": str(header["tensors_sha256"])}
    chosen = prepare(folder, config, facts, resume=resume)
    frozen = backbone if backbone is not None else load_backbone(str(header["backbone"]["name"]))
    hashes = frozen_hashes(frozen)
    kept = load_state(folder) if resume else {}
    session = Session(
        source, meta, images, chosen, folder, frozen, spent=float(kept.get("spent", 0.0)), tell=tell or _silent
    )
    try:
        if kept:
            session.restore(kept)
        why = _rounds(session, tell or _silent)
        result = _write(session, source, meta, header, out, why)
        write_text(folder / "result.json", json.dumps(_facts(result, session), indent=1) + "\n")
        if report:
            write_page(session, result, chosen)
    finally:
        session.close()
    _require_frozen(hashes, frozen)
    return result


def prepare(folder: Path, config: AdaptConfig | None, facts: dict[str, str], *, resume: bool) -> AdaptConfig:
    """Make the work folder, or check that it holds the run that is resumed; gives its settings.

    Raises:
        OutputError: a run is there and ``resume`` is False, or the folder cannot be made.
        InputError: ``resume``, and no run is there.
        ConfigError: a run with other settings or another adapter.
    """
    path = folder / CONFIG
    if not resume:
        if path.exists():
            raise OutputError(f"{folder} holds a run already; choose another folder, or resume it (--resume)")
        chosen = config or AdaptConfig()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder}: {error}; choose a writable folder") from error
        write_text(path, to_yaml({**facts, "config": chosen.to_dict()}))
        return chosen
    if not path.is_file():
        raise InputError(f"{folder} holds no run, so there is nothing to resume; run without --resume")
    saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    if {name: saved.get(name) for name in facts} != facts:
        raise ConfigError(f"{folder} is the run of another source adapter; choose another folder")
    known = AdaptConfig.from_dict(saved["config"])
    if config is not None and known != config:
        raise ConfigError(f"{folder} was started with other settings (see {CONFIG}); leave them out, or start anew")
    return known


def _rounds(session: Session, tell: Tell) -> str:
    """Go on until there is nothing more to do; says why."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    quiet = not (session.config.progress and console.is_terminal)
    tell(_line(session.rounds[-1], session))
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("adapting", total=session.config.steps, completed=session.loop.step)
        while not (why := session.finished()):
            one = session.advance(lambda step: bar.update(task, completed=step))
            tell(_line(one, session))
    return why


def _line(one: Round, session: Session) -> str:
    """A round in words."""
    names = ("score", "agreement", "anchor", "box_iou", "share_factor")
    figures = "  ".join(f"{name} {one.figures[name]:.3f}" for name in names if name in one.figures)
    remark = f"  refused: {one.refused}" if one.refused else ""
    return f"step {one.step:>5}  {session.spent():>6.0f} s  {figures}{remark}"


def _write(
    session: Session, source: Path, meta: BundleMeta, header: dict[str, Any], out: Path, why: str
) -> AdaptResult:
    """Write the bundle: the best trusted state, or the source adapter."""
    best = session.best_round
    fell_back = best is None or session.best is None
    if fell_back:
        reasons = [one.refused for one in session.rounds[1:] if one.refused]
        why = f"the guard kept the source adapter: {reasons[-1] if reasons else 'no round was made'}"
    result = AdaptResult(
        adapter=out,
        work=session.work,
        report=session.work / "report.html",
        fell_back=fell_back,
        reason=why,
        best_step=0 if best is None else best.step,
        rounds=tuple(session.rounds),
        seconds=round(session.spent(), 2),
    )
    told = {**_facts(result, session), "source": {"file": source.name, "tensors_sha256": header["tensors_sha256"]}}
    if best is None or session.best is None:
        own = replace(meta, extra={**meta.extra, "adaptation": told})
        with atomic_path(out) as temporary:
            shutil.copyfile(source, temporary)
            replace_meta(temporary, own)
        return result
    extra = {name: meta.extra[name] for name in KEPT if name in meta.extra}
    if session.look != PLAIN:
        extra["input"] = {**extra["input"], "tone": session.look}
    training = {**meta.training, "adapted": time.strftime("%Y-%m-%d"), "adapted_images": len(session.cases)}
    own = replace(meta, training=training, metrics={}, extra={**extra, "adaptation": told})
    session.networks.set_student({name: value.to(session.device) for name, value in session.best.items()})
    save_bundle(out, session.networks.grafted, meta=own)
    return result


def _facts(result: AdaptResult, session: Session) -> dict[str, Any]:
    """What was done, in JSON types."""
    rounds = [
        {"step": one.step, "refused": one.refused, **{k: _number(v) for k, v in one.figures.items()}}
        for one in result.rounds
    ]
    return {
        "fell_back": result.fell_back,
        "reason": result.reason,
        "best_step": result.best_step,
        "criterion": "score",
        "look": session.look,
        "guide": facts(session.guide),
        "labels": "none",
        "images": len(session.cases),
        "tiles": len(session.tiles),
        "seconds": result.seconds,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "config": session.config.to_dict(),
    }


def _number(value: float) -> float | None:
    return round(value, 5) if value == value and abs(value) != float("inf") else None


def _require_frozen(before: dict[str, str], backbone: Backbone) -> None:
    """The frozen backbone has the bytes it had.

    Raises:
        CheckpointError: it has not.
    """
    with torch.no_grad():
        after = frozen_hashes(backbone)
    changed = sorted(name for name, value in before.items() if after.get(name) != value)
    if changed:
        raise CheckpointError(f"the frozen backbone changed during adaptation: {changed[:3]}; do not use this adapter")


def _silent(line: str) -> None:
    del line
