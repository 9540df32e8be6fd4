"""``samgraft locate``: fit a locator on a data set, or find the 3D boxes of structures in a volume."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """``locate fit DATA -o FILE.locate`` or ``locate VOLUME --locator FILE.locate -o boxes.json``."""
    words = list(arguments)
    if words[:1] == ["fit"]:
        _fit(words[1:])
    else:
        _use(words)


def _fit(words: Sequence[str]) -> None:
    parser = plain_parser(
        "locate fit",
        "Train an anatomy position network on the images of a data set (no label is read for that), and remember where "
        "its structures lie in a few annotated volumes.",
    )
    parser.add_argument("data", help="folder in nnU-Net layout")
    parser.add_argument("-o", "--output", required=True, help="file to write, *.locate")
    parser.add_argument("--supports", type=int, default=5, help="annotated volumes, 3 to 10")
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="which ones; drawn by --seed otherwise")
    parser.add_argument("--spacing", type=float, default=None, help="mm that volumes are resampled to")
    parser.add_argument("--crop", type=int, default=None, help="side of a training view in voxels of that spacing")
    parser.add_argument("--steps", type=int, default=None, help="training steps")
    parser.add_argument("--minutes", type=float, default=None, help="end the training after this time")
    parser.add_argument(
        "--start",
        choices=("best", "votes", "templates"),
        default="best",
        help="votes: of the position network; templates: what looks most like the annotated volumes, without training; "
        "best: per structure, what locates the annotated volumes better",
    )
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args(list(words))
    if not Path(values.output).parent.is_dir():
        raise ConfigError(f"folder {Path(values.output).parent} does not exist; create it first")

    from samgraft.recipes.locating import FitLocator, fit_locator
    from samgraft.volumetric.localisation import LocatorConfig, PositionConfig, PositionTraining

    asked = {"steps": values.steps, "minutes": values.minutes, "crop": values.crop, "seed": values.seed}
    config = FitLocator(
        supports=values.supports,
        cases=tuple(values.cases),
        network=PositionConfig() if values.spacing is None else PositionConfig(spacing=values.spacing),
        training=PositionTraining(**{k: v for k, v in asked.items() if v is not None}),
        locator=LocatorConfig(start=values.start),
        seed=values.seed,
    )
    _, meta = fit_locator(values.data, config, output=values.output, report=_progress)
    say(f"{len(meta['cases'])} volumes, annotated: {', '.join(meta['supports'])}")
    for name, distance in meta["wall_mm_leave_one_out"].items():
        way = meta["found_by"][name]
        say(f"  {name:<20} by {way}: walls {distance:.1f} mm off when located by the other annotated volumes")
    say(f"wrote {values.output}")


def _progress(step: int, means: dict[str, float]) -> None:
    say(f"  step {step}: ways {means['way_mm']:.1f} mm off, {100 * means['alike']:.0f} % of places recognised")


def _use(words: Sequence[str]) -> None:
    parser = plain_parser(
        "locate",
        "Find the 3D boxes of the structures that a locator knows, and write them as prompts for samgraft segment. "
        "samgraft locate fit makes a locator.",
    )
    parser.add_argument("input", help="volume: NIfTI, DICOM folder, MHA, NRRD")
    parser.add_argument("--locator", required=True, help="file of samgraft locate fit")
    parser.add_argument("-o", "--output", required=True, help="JSON file of volume prompts")
    parser.add_argument("--axis", type=int, default=None, help="array axis that is cut into slices")
    values = parser.parse_args(list(words))

    from samgraft.domains.opening import open_scene
    from samgraft.recipes.locating import locate
    from samgraft.recipes.volume_prompt_files import write_volume_prompts
    from samgraft.recipes.volume_prompts import box_to_world

    scene = open_scene(values.input)
    result = locate(scene, values.locator, axis=values.axis)
    axis = result.prompts.cut_axis(scene.grid)
    objects = []
    for one, (name, found) in zip(result.prompts.objects, result.found.items(), strict=True):
        if one.box is None or one.extent is None:
            raise ConfigError(f"{name} was located without a box; update samgraft")
        mm = box_to_world(one.box, one.extent, scene.grid, axis)
        ends = " to ".join("(" + ", ".join(f"{v:.1f}" for v in place) + ")" for place in mm.values())
        note = f"{scene.grid.world} {ends} mm; annotated volumes disagree by {found.spread:.1f} mm"
        objects.append({"class": name, "box": list(one.box), "slices": list(one.extent), "comment": note})
        say(f"{name}: {note}")
    write_volume_prompts(values.output, objects, axis=axis, image=scene.path.name)
    say(f"wrote {values.output}")
