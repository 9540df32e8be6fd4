"""``samgraft boxes-to-masks BOXES --images FOLDER -o OUT``: a detection set becomes an instance-mask set."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.recipes.commands.parsing import PlainParser, plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Make the masks, the COCO file and the contact sheet."""
    values = _parser().parse_args(list(arguments))

    from samgraft.adapters.backbones import load_backbone
    from samgraft.domains.detections.sets import read_detection_set
    from samgraft.recipes.box_mask_sets import boxes_to_masks
    from samgraft.recipes.box_masks import BoxMasksConfig
    from samgraft.recipes.heap import keep_memory
    from samgraft.recipes.prompt_files import summary

    keep_memory()
    config = BoxMasksConfig(
        dilate=values.dilate,
        overlap=values.overlaps,
        tight=not values.loose,
        min_score=values.min_score,
        network_size=values.size,
    )
    data = read_detection_set(values.boxes, values.images, class_field=values.class_field)
    say(f"{len(data)} images, classes {', '.join(data.classes.values())}")
    output = Path(values.output)
    found = boxes_to_masks(data, output, load_backbone(values.backbone), config, tell=say)
    say(f"{found.masks} masks; {found.written} images written, {found.kept} there before, {found.negatives} negative")
    if found.left_out:
        say(summary(found.left_out))
    say(f"look at {output / 'contact_sheet.png'}; masks: {output / 'annotations.json'} and {output / 'instances'}")


def _parser() -> PlainParser:
    parser = plain_parser(
        "boxes-to-masks",
        "Turn boxes into masks. A run that was stopped goes on where it was; what was made with other settings is made "
        "again.",
    )
    parser.add_argument("boxes", help="COCO .json with images, or a vector file or folder for rasters")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("-o", "--output", required=True, help="folder for the masks")
    parser.add_argument("--backbone", default="graft-tiny", help="name, folder or file")
    parser.add_argument("--class-field", default=None, help="vector files: field that holds the class")
    parser.add_argument("--min-score", type=float, default=0.0, help="leave out detections below this score")
    parser.add_argument("--dilate", type=float, default=0.05, help="share of a box's side that a mask may leave it by")
    parser.add_argument(
        "--overlaps",
        default="ignore",
        choices=("ignore", "smallest"),
        help="pixels of several objects in the semantic map: 255, or the class of the smallest",
    )
    parser.add_argument("--loose", action="store_true", help="boxes are larger than their objects")
    parser.add_argument("--size", type=int, default=None, help="side in pixels of the network input")
    return parser
