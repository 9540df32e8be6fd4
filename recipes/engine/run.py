"""``samgraft.segment``: choose the mode, run it, write the results."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.quantize import quantize as quantize_backbone
from samgraft.adapters.bundle import BundleMeta, load_bundle, read_header, read_meta
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.improve import Improvement
from samgraft.domains.atomic import all_or_none, full_suffix
from samgraft.domains.medical.dicom import DicomScene
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import DICOM_SUFFIXES, SUFFIXES, Segmentation, require_series
from samgraft.errors import ConfigError, OutputError
from samgraft.recipes.engine.aligned import aligned, at_trained_spacing
from samgraft.recipes.engine.asking import answering
from samgraft.recipes.engine.automatic import Track, segment_automatic
from samgraft.recipes.engine.clicked import clicked, clicks_for, require_slabs
from samgraft.recipes.engine.everything import EverythingConfig, segment_everything
from samgraft.recipes.engine.flipped import segment_flipped
from samgraft.recipes.engine.focus import CONTEXTS
from samgraft.recipes.engine.pipeline import DEPTH
from samgraft.recipes.engine.prompted import segment_prompted
from samgraft.recipes.engine.propagated import VolumeOptions, segment_volume, write_uncertainty
from samgraft.recipes.engine.recorded import Recorded, recorded
from samgraft.recipes.engine.referenced import Examples, segment_like
from samgraft.recipes.engine.scales import with_scales
from samgraft.recipes.engine.self_prompted import carried
from samgraft.recipes.engine.turned import with_views
from samgraft.recipes.prompt_files import prompts_from_file
from samgraft.recipes.prompting import ObjectPrompts, UserPrompts
from samgraft.recipes.trusting import calibration_of
from samgraft.recipes.volume_prompt_files import is_volume_prompts, read_volume_prompts
from samgraft.recipes.volume_prompts import VolumePrompts

DEFAULT_BACKBONE = "graft-tiny"
_META = "bundle_meta"


def segment(
    scene: Scene | str | PathLike[str],
    *,
    adapter: str | PathLike[str] | Grafted | None = None,
    backbone: str | PathLike[str] | Backbone | None = None,
    prompts: UserPrompts | ObjectPrompts | VolumePrompts | str | PathLike[str] | None = None,
    volume: VolumeOptions | None = None,
    align: str | None = None,
    align_source: str | PathLike[str] | None = None,
    spacing: str | None = None,
    views: int = 1,
    scales: Sequence[float] = (1.0,),
    references: Examples | None = None,
    output: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    network_size: int | None = None,
    context: float | Sequence[float] = CONTEXTS,
    tight_boxes: bool = True,
    batch: int | None = None,
    pipeline: int = DEPTH,
    bands: Sequence[int] | None = None,
    everything: EverythingConfig | None = None,
    records: str | PathLike[str] | None = None,
    quantize: str | None = None,
    better: Improvement | None = None,
    progress: bool = True,
) -> Segmentation:
    """Segment one volume, raster or picture.

    With ``prompts`` the objects that they name; with ``references`` what those labelled files show; with an ``adapter``
    alone what it was trained for; with none of them everything that looks like an object (pictures and rasters).

    Args:
        scene: A scene of ``samgraft.open``, or a path.
        adapter: File of ``samgraft fit``, or what ``samgraft.load_adapter`` gives; answers prompts if its decoder can.
        backbone: Name, folder, file or backbone; None takes the adapter's, else graft-tiny.
        prompts: Boxes and points in pixels, in 3D, or a file that ``prompt_files`` or ``volume_prompt_files`` reads.
        volume: Carry prompts through the slices of a volume so; None stays on their slices (unless they are in 3D).
        align: Adapter only: "auto", or another way to move the scene towards the images of training (docs/align.md).
        align_source: Folder of training images, for an adapter whose header does not remember them.
        spacing: "adapter" shows a volume at the millimetres per network pixel of training; None as it is.
        views: Adapter on a picture or raster: mean of 4 (mirrored) or 8 (turned, too) views; as many times the work.
        scales: The same; objects of several sizes: multiples of the size of training, each object from the best one.
        references: Labelled files of the same kind, and the method that reads them.
        output: File or files to write, the format by suffix.
        network_size: Pixels per side of the network input; None: the backbone's, twice that with references.
        context: Side of the view around a box, over its longest side; several are averaged.
        tight_boxes: A box ends where its object ends, so the mask is made to fill it; False for loose boxes.
        batch: Network inputs encoded together; None chooses by their size.
        pipeline: Batches that may wait between the threads that read, encode and decode; 0 uses one. Same bits.
        bands: Channels (from 0) shown as red, green, blue; None takes those that the file names, else the first.
        everything: Options of the mode without prompts and adapter.
        records: JSON file for all its masks, also those that overlap, as COCO RLE with score, point and form.
        quantize: "int8" runs the frozen encoder in int8 (CPU, and only one that is loaded here; docs/speed.md).
        better: Prompts only: an extra point or self-correction.
        progress: Show a bar on the terminal.

    Returns:
        Labels on exactly the grid of the input; ``save`` writes them.

    Raises:
        InputError: the file is missing, damaged or not what the adapter wants. PromptError: a prompt lies outside.
        ConfigError: contradictory options. CheckpointError: the adapter is damaged or belongs to another backbone.
        GeometryError, OutputError: a format that cannot keep the grid, or cannot be written; nothing is half written.
    """
    seen = dict[str, Any](align=align, align_source=align_source, spacing=spacing, views=views, scales=tuple(scales))
    _check_asked(prompts, references, better, records, adapter, volume, seen)
    source, targets, told = _opened(scene, output, prompts)
    network, grafted, meta, opened = _quantized(quantize, adapter, backbone)
    common: Any = {"size": network_size, "bands": bands, "batch": batch, "depth": pipeline, "track": _track(progress)}
    with _detached(grafted if opened else None):
        if told is not None:
            asked = {**common, "context": context, "fit": tight_boxes, "better": better}
            result = _answer(source, network, grafted, meta, told, volume, asked)
        elif references is not None:
            result = segment_like(source, references, backbone=network, size=network_size, bands=bands)
        elif grafted is not None:
            result = _automatic(source, grafted, meta, volume, seen, common)
        else:
            result = segment_everything(source, network, config=everything, records=records, **common)
    return _finished(result, source, adapter, targets)


@contextmanager
def _detached(grafted: Grafted | None) -> Iterator[None]:
    """Take the adapter off its backbone in the end, whatever happens."""
    try:
        yield
    finally:
        if grafted is not None:
            grafted.detach()


def _header(grafted: Grafted, meta: BundleMeta, network_size: int | None, bands: Sequence[int] | None) -> Recorded:
    """What the adapter's header says; it decides sizes and channels."""
    if network_size is not None or bands is not None:
        raise ConfigError("network_size and bands are decided by the adapter's header; leave them out")
    return recorded(grafted, meta)


def _moved(
    said: Recorded,
    scene: Scene,
    grafted: Grafted,
    *,
    align: str | None,
    align_source: str | PathLike[str] | None,
    spacing: str | None,
    views: int,
    scales: tuple[float, ...],
) -> Recorded:
    """The header with how often the scene is looked at, and what brings it to the images of training."""
    said = with_scales(with_views(said, scene, views), scene, scales)
    said = at_trained_spacing(said, scene, spacing, grafted.backbone.spec)
    return aligned(said, scene, adapter_meta(grafted), align, source=align_source)


def _check_asked(
    prompts: object,
    references: Examples | None,
    better: Improvement | None,
    records: object,
    adapter: object,
    volume: VolumeOptions | None,
    seen: Mapping[str, object],
) -> None:
    """Refuse what contradicts itself."""
    if records is not None and (prompts is not None or adapter is not None):
        raise ConfigError("records belong to everything mode; leave prompts and adapter out, or records")
    if references is not None and prompts is not None:
        raise ConfigError("references and prompts both say what to segment; give one of them")
    if better and prompts is None:
        raise ConfigError("better= improves answers to prompts, and there are none; give prompts, or leave it out")
    if volume is not None and prompts is None and adapter is None:
        raise ConfigError("volume= is about prompts or an adapter on a volume; give one of them, or leave it out")
    alone = adapter is not None and prompts is None and references is None
    changed = [name for name, value in seen.items() if value not in (None, 1, (1,))]
    if changed and not alone:
        raise ConfigError(
            f"{changed[0]}={seen[changed[0]]!r} says how an adapter that works by itself sees a scene; give adapter= "
            "without prompts and references, or leave it out"
        )


def _automatic(
    scene: Scene,
    grafted: Grafted,
    meta: BundleMeta,
    volume: VolumeOptions | None,
    seen: dict[str, Any],
    options: dict[str, Any],
) -> Segmentation:
    """What the adapter was trained for; with ``volume`` by mirror images too, with rules of shape and flags."""
    said = _moved(_header(grafted, meta, options["size"], options["bands"]), scene, grafted, **seen)
    if volume is None:
        named = {name: options[name] for name in ("batch", "depth", "track")}
        return segment_automatic(scene, grafted, said, **named)
    stored = {name: calibration_of(meta, "automatic", name) for name in said.classes.values()}
    known = {name: one for name, one in stored.items() if one is not None and len(volume.flips) > 1}
    found = segment_flipped(
        scene, grafted, said, flips=volume.flips, rules=volume.rules, calibrations=known, batch=options["batch"]
    )
    if volume.uncertainty is not None:
        write_uncertainty(volume.uncertainty, found.uncertainty, scene.grid)
    return carried(scene, found, grafted, volume, batch=options["batch"], track=options["track"])


def _answer(
    scene: Scene,
    network: Backbone,
    grafted: Grafted | None,
    meta: BundleMeta,
    told: UserPrompts | ObjectPrompts | VolumePrompts,
    volume: VolumeOptions | None,
    options: dict[str, Any],
) -> Segmentation:
    """Answer prompts on the prompted slices, or in the whole volume."""
    clicks = clicks_for(grafted, told, scene) if volume is None else ()
    if clicks and grafted is not None:
        said = _header(grafted, meta, options["size"], options["bands"])
        require_slabs(said, scene, told.axis)
        named = {name: options[name] for name in ("batch", "depth", "track")}
        result = segment_automatic(scene, grafted, said, clicks=clicks, **named)
        return clicked(result, told, len(clicks))
    with nullcontext(network) if grafted is None else answering(grafted) as asked:
        if volume is None and not isinstance(told, VolumePrompts):
            return segment_prompted(scene, asked, told, **{k: v for k, v in options.items() if k != "track"})
        found = segment_volume(scene, asked, told, options=volume, **{k: v for k, v in options.items() if k != "depth"})
    if volume is not None and volume.uncertainty is not None:
        write_uncertainty(volume.uncertainty, found.uncertainty(), scene.grid)
    return found.segmentation


def _asked(
    prompts: UserPrompts | ObjectPrompts | VolumePrompts | str | PathLike[str], scene: Scene
) -> UserPrompts | ObjectPrompts | VolumePrompts:
    """Prompts as they are, or those of a file; what a file names in vain is said by a warning."""
    if isinstance(prompts, UserPrompts | ObjectPrompts | VolumePrompts):
        return prompts
    if is_volume_prompts(Path(prompts)):
        return read_volume_prompts(Path(prompts), scene)
    found = prompts_from_file(prompts, scene)
    if found.left_out:
        warnings.warn(found.remark(), stacklevel=3)
    return found.prompts


def load_adapter(path: str | PathLike[str], backbone: str | PathLike[str] | Backbone | None = None) -> Grafted:
    """Load an adapter file onto its backbone.

    Args:
        path: A ``*.graft`` file.
        backbone: Name, folder, file or backbone; None loads the one that the file names.

    Returns:
        The grafted network; hand it to ``samgraft.segment(adapter=...)``. ``adapter_meta`` gives its header.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another backbone.
    """
    meta = read_meta(path)
    base = _backbone(read_header(path)["backbone"]["name"] if backbone is None else backbone)
    grafted = load_bundle(path, base)
    grafted.eval()
    return with_meta(grafted, meta)


def with_meta(grafted: Grafted, meta: BundleMeta) -> Grafted:
    """Say what a network that was just trained is for, so that ``segment`` can use it without a file."""
    setattr(grafted, _META, meta)
    return grafted


def adapter_meta(grafted: Grafted) -> BundleMeta:
    """Header of a loaded adapter.

    Raises:
        ConfigError: it was neither loaded from a file nor given a header by :func:`with_meta`.
    """
    meta = getattr(grafted, _META, None)
    if not isinstance(meta, BundleMeta):
        raise ConfigError(
            "this adapter has no header; load it with samgraft.load_adapter(path), or add one by with_meta"
        )
    return meta


def _network(
    adapter: str | PathLike[str] | Grafted | None, backbone: str | PathLike[str] | Backbone | None
) -> tuple[Backbone, Grafted | None, BundleMeta, bool]:
    """Backbone, adapter, header, and whether the adapter was installed here."""
    if adapter is None:
        return _backbone(DEFAULT_BACKBONE if backbone is None else backbone), None, BundleMeta(), False
    if isinstance(adapter, Grafted):
        if backbone is not None and backbone is not adapter.backbone:
            raise ConfigError("adapter is already attached to a backbone; leave backbone out")
        meta = getattr(adapter, _META, None) or BundleMeta()
        return adapter.backbone, adapter, meta, False
    grafted = load_adapter(adapter, backbone)
    return grafted.backbone, grafted, adapter_meta(grafted), True


def _quantized(
    precision: str | None,
    adapter: str | PathLike[str] | Grafted | None,
    backbone: str | PathLike[str] | Backbone | None,
) -> tuple[Backbone, Grafted | None, BundleMeta, bool]:
    """What :func:`_network` gives, quantised if asked."""
    found = _network(adapter, backbone)
    _quantize(found[0], precision, adapter, backbone)
    return found


def _quantize(network: Backbone, precision: str | None, *given: object) -> None:
    """Quantise a backbone that was loaded here and that the caller does not hold; None does nothing."""
    if precision is None:
        return
    if not isinstance(network, HFSamBackbone) or any(isinstance(value, Grafted | Backbone) for value in given):
        raise ConfigError(
            f"quantize={precision!r} changes a backbone for good, so it needs one that is loaded here; give names or "
            "paths, or call samgraft.adapters.backbones.quantize.quantize yourself"
        )
    quantize_backbone(network, precision)


def _backbone(source: str | PathLike[str] | Backbone) -> Backbone:
    return source if isinstance(source, Backbone) else load_backbone(source)


def _finished(
    result: Segmentation, source: Scene, adapter: str | PathLike[str] | Grafted | None, targets: Sequence[Path]
) -> Segmentation:
    """The result with its series (DICOM) and adapter file, written to every target."""
    facts = {}
    if adapter is not None and not isinstance(adapter, Grafted):
        facts = {"adapter": Path(adapter).name, "adapter_sha256": str(read_header(adapter).get("tensors_sha256", ""))}
    result = result.about(source=source if isinstance(source, DicomScene) else None, meta=facts)
    with all_or_none():
        for path in targets:
            result.save(path)
    return result


def _opened(
    scene: Scene | str | PathLike[str],
    output: str | PathLike[str] | Sequence[str | PathLike[str]] | None,
    prompts: Any,
) -> tuple[Scene, list[Path], Any]:
    """The scene, the files that will be written, and what is asked."""
    source = scene if isinstance(scene, Scene) else open_scene(scene)
    targets = output_paths(output, source)
    return source, targets, None if prompts is None else _asked(prompts, source)


def output_paths(output: str | PathLike[str] | Sequence[str | PathLike[str]] | None, source: Scene) -> list[Path]:
    """Outputs as paths; what cannot be written is said before the work begins.

    Raises:
        ConfigError: a suffix without a writer.
        GeometryError: a DICOM segmentation object of what is no DICOM series.
        OutputError: a folder that does not exist.
    """
    if output is None:
        return []
    paths = [Path(p) for p in ([output] if isinstance(output, str | PathLike) else output)]
    for path in paths:
        suffix = full_suffix(path)
        if suffix not in SUFFIXES:
            raise ConfigError(f"{path.name}: unknown suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}")
        if suffix in DICOM_SUFFIXES:
            require_series(source, path)
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: folder {path.parent} does not exist; create it first")
    return paths


def _track(progress: bool) -> Track | None:
    """What wraps long loops."""
    return _bar if progress else None


def _bar(sequence: Sequence[Any], what: str) -> Iterator[Any]:
    """Walk ``sequence`` with a bar on stderr; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(sequence, description=what, console=console, transient=True, disable=not console.is_terminal)
