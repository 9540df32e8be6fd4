"""Many files in, masks out: an adapter on every input, shared by processes that need not know each other.

Inputs are dealt by size, largest first and in turn, so that every process can work out its own part from the list alone
(an array job, several nodes, several processes here). A mask appears by a rename when it is complete; what is there
already is not computed again, so a killed run goes on where it stopped.

    inputs -> plan -> (rank r) open -> samgraft.segment -> OUT/<stem><suffix> on the grid of the input
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from samgraft.adapters.bundle import read_header
from samgraft.adapters.graft import Grafted
from samgraft.domains.atomic import full_suffix
from samgraft.domains.medical.dicom import DicomScene, is_dicom
from samgraft.domains.opening import IMAGE_SUFFIXES, open_scene
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import DICOM_SUFFIXES, VOLUME_SUFFIXES
from samgraft.errors import ConfigError, InputError, OutputError
from samgraft.recipes.engine.run import load_adapter, segment
from samgraft.recipes.ranks import ALONE, Share
from samgraft.recipes.report import write_text

MARKER = "predict.json"
"""File in the output folder that says whose masks lie there."""
State = Literal["written", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one input."""

    source: Path
    state: State
    """"skipped": the mask was there already."""
    mask: Path | None = None
    """The file with the mask; None where it failed."""
    error: str = ""
    """Name and message of the error, if it failed."""
    seconds: float = 0.0
    """Wall time."""


def find_inputs(given: Iterable[str | PathLike[str]]) -> tuple[Path, ...]:
    """Files to segment.

    Args:
        given: Files, DICOM folders, or folders of images; of the last, every file with a known suffix and every folder
            that holds DICOM files, one level deep. Hidden ones are left out.

    Raises:
        InputError: a path that does not exist, or a folder without images.
        ConfigError: two inputs whose masks would have the same name.
    """
    found: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give files, or folders of images")
        found += [path] if path.is_file() or _is_series(path) else _members(path)
    names: dict[str, Path] = {}
    for path in found:
        twin = names.setdefault(_stem(path), path)
        if twin is not path:
            raise ConfigError(
                f"{twin} and {path} would both be written as {_stem(path)!r}; segment them into different folders"
            )
    return tuple(found)


def deal(inputs: Sequence[Path], share: Share) -> list[Path]:
    """The inputs of one process: sorted by size, largest first (names decide between equals), and dealt in turn."""
    return share.dealt(sorted(inputs, key=lambda path: (-_size(path), str(path))))


def mask_suffix(scene: Scene, volumes: str | None = None) -> str:
    """Suffix of the mask of ``scene``: a format that keeps its grid, the input's own where that can be written.

    Args:
        scene: The input.
        volumes: Suffix for all volumes; None takes the input's, ``.dcm`` (DICOM-SEG) for a DICOM series, and else
            ``.nii.gz``.
    """
    suffix = full_suffix(scene.path)
    if scene.kind == "volume":
        if volumes is not None:
            return volumes
        if isinstance(scene, DicomScene):
            return ".dcm"
        return suffix if suffix in VOLUME_SUFFIXES else ".nii.gz"
    if scene.kind == "raster" or suffix in (".tif", ".tiff"):
        return ".tif"
    return ".png"


def predict(
    inputs: Sequence[Path],
    output: Path,
    *,
    adapter: str | PathLike[str] | Grafted,
    backbone: str | PathLike[str] | None = None,
    share: Share = ALONE,
    overwrite: bool = False,
    suffix: str | None = None,
    batch: int = 16,
    device: str = "auto",
    align: str | None = None,
    align_source: str | PathLike[str] | None = None,
    spacing: str | None = None,
    views: int = 1,
    scales: Sequence[float] = (1.0,),
    tell: Callable[[Outcome], None] | None = None,
) -> tuple[Outcome, ...]:
    """Segment this process's share of ``inputs``.

    Args:
        inputs: What :func:`find_inputs` gives; the same, on every process.
        output: Folder for the masks, made if it is not there: ``<stem of the input><suffix>`` on the input's own grid.
        adapter: A file written by ``samgraft fit``, or what ``samgraft.load_adapter`` gives.
        backbone: Name, folder or file; None takes the adapter's.
        share: Which of how many processes this is.
        overwrite: Compute masks again that are there already.
        suffix: Of the masks of volumes; None: see :func:`mask_suffix`.
        batch: Network inputs computed together.
        device: Where the network runs: "cpu", "cuda:1"; "auto" deals out the GPUs, or takes the CPU.
        align: As of ``samgraft.segment``; fitted to each input by itself.
        align_source: As of ``samgraft.segment``.
        spacing: As of ``samgraft.segment``.
        views: As of ``samgraft.segment``.
        scales: As of ``samgraft.segment``.
        tell: Called after each input.

    Returns:
        One outcome per input of this share, in the order of work. An input that cannot be segmented is an outcome too
        and does not stop the others.

    Raises:
        CheckpointError: the adapter is damaged or belongs to another backbone.
        ConfigError: the output folder holds masks of another adapter, or is one of the input folders; or a suffix that
            is not written for volumes.
        OutputError: the output folder cannot be made.
    """
    if suffix is not None and suffix not in (*VOLUME_SUFFIXES, *DICOM_SUFFIXES):
        known = ", ".join((*VOLUME_SUFFIXES, *DICOM_SUFFIXES))
        raise ConfigError(f"suffix {suffix!r} is not written for volumes; expected one of {known}")
    file = None if isinstance(adapter, Grafted) else Path(adapter)
    moved: dict[str, Any] = {name: v for name, v in (("align", align), ("spacing", spacing)) if v is not None}
    moved |= {"views": views} if views != 1 else {}
    moved |= {"scales": list(scales)} if tuple(scales) != (1,) else {}
    since = claim_output(output, inputs, file, overwrite=overwrite, moved=moved)
    options: dict[str, Any] = {"batch": batch, "align_source": align_source, **moved}
    network = adapter if isinstance(adapter, Grafted) else load_adapter(adapter, backbone)
    network.to(_device(device, share))
    outcomes = []
    for path in deal(inputs, share):
        outcome = _one(path, output, network, options, since=math.inf if overwrite else since, suffix=suffix)
        outcomes.append(outcome)
        if tell is not None:
            tell(outcome)
    return tuple(outcomes)


def _one(
    path: Path, output: Path, network: Grafted, options: Mapping[str, Any], *, since: float, suffix: str | None
) -> Outcome:
    """Segment one input, unless its mask is younger than ``since``.

    Whatever goes wrong is part of the outcome, since the other inputs are waiting.
    """
    began = time.monotonic()
    try:
        scene = open_scene(path)
        target = output / f"{_stem(path)}{mask_suffix(scene, suffix)}"
        if target.is_file() and target.stat().st_mtime >= since:
            return Outcome(source=path, state="skipped", mask=target)
        segment(scene, adapter=network, output=target, progress=False, **options)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(source=path, state="failed", error=message, seconds=time.monotonic() - began)
    return Outcome(source=path, state="written", mask=target, seconds=time.monotonic() - began)


def claim_output(
    output: Path,
    inputs: Sequence[Path],
    adapter: Path | None,
    *,
    overwrite: bool,
    moved: Mapping[str, Any] | None = None,
) -> float:
    """Make the output folder, and write down whose masks lie in it; every process may do so, and writes the same.

    Args:
        output: Folder for the masks.
        inputs: What will be segmented.
        adapter: Adapter file, or None for one in memory, which leaves no mark.
        overwrite: Take over a folder with masks of another adapter.
        moved: How inputs are brought to the adapter's training images: options of ``samgraft.segment``.

    Returns:
        Time (seconds since 1970) from which masks are this adapter's: 0, unless the folder was taken over.

    Raises:
        CheckpointError: a damaged adapter.
        ConfigError: inputs lie in the folder, so that masks would be taken for images next time, or it holds masks of
            another adapter.
        OutputError: the folder cannot be made or written.
    """
    inside = [path for path in inputs if path.parent.resolve() == output.resolve()]
    if inside:
        raise ConfigError(f"{inside[0].name} lies in the output folder {output}; choose another folder for the masks")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {output}: {error}; choose a writable folder") from error
    if adapter is None:
        return 0.0
    header, known = read_header(adapter), _read_mark(output / MARKER)
    facts = {"adapter": header["tensors_sha256"], "backbone": header["backbone"]["sha256"], **dict(moved or {})}
    if {name: value for name, value in known.items() if name != "since"} == facts:
        return float(known.get("since", 0.0))
    if known and not overwrite:
        raise ConfigError(
            f"{output} holds masks of another adapter, of another alignment, or of other views or scales (see "
            f"{MARKER}); choose another folder, or add --overwrite"
        )
    since = time.time() if known else 0.0
    write_text(output / MARKER, json.dumps({**facts, "since": since}, indent=1) + "\n")
    return since


def _read_mark(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it, or choose another folder") from error
    return known if isinstance(known, dict) else {"adapter": known}


def _device(wanted: str, share: Share) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", share.rank % torch.cuda.device_count())


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.name[: len(path.name) - len(full_suffix(path))]


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a series."""
    return sum(p.stat().st_size for p in path.iterdir() if p.is_file()) if path.is_dir() else path.stat().st_size


def _is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files: any of its first few says so."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return any(is_dicom(path) for path in files[:4])


def _members(folder: Path) -> list[Path]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [p for p in entries if (full_suffix(p) in IMAGE_SUFFIXES if p.is_file() else _is_series(p))]
    if not found:
        raise InputError(f"{folder} holds no image; expected {' '.join(IMAGE_SUFFIXES)} or folders of DICOM files")
    return found
