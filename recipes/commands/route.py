"""``samgraft route``: which adapter's training images an image is like."""

from collections.abc import Sequence
from pathlib import Path

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Print a line per image, or teach an adapter what its training images look like."""
    parser = plain_parser(
        "route",
        "Say which adapter's training images an image is like, by features of the frozen backbone; 'unknown' if it is "
        "far from all. 1 is as far as an image may be and still belong.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images to be routed")
    parser.add_argument(
        "-a", "--adapters", nargs="+", required=True, metavar="FILE", help="adapter files, one a domain"
    )
    parser.add_argument("--backbone", default=None, help="name, folder or file; by default that of the first adapter")
    parser.add_argument(
        "--learn",
        action="store_true",
        help="write into the header of the one adapter given that IMAGE ... are what it was trained on",
    )
    values = parser.parse_args(list(arguments))
    if values.learn:
        _learn(values.images, values.adapters, values.backbone)
        return

    from samgraft.domains.opening import open_scene
    from samgraft.recipes.continual.router import Domains

    domains = Domains.load(values.adapters, values.backbone)
    for image in values.images:
        say(f"{image}: {domains.route(open_scene(image)).text()}")


def _learn(images: Sequence[str], adapters: Sequence[str], backbone: str | None) -> None:
    if len(adapters) != 1:
        raise ConfigError(f"--learn teaches one adapter; {len(adapters)} are given")

    from samgraft.domains.opening import open_scene
    from samgraft.recipes.api import adapter_meta, load_adapter
    from samgraft.recipes.engine.recorded import recorded
    from samgraft.recipes.features import learn_features, write_features

    grafted = load_adapter(adapters[0], backbone)
    found = learn_features(grafted, recorded(grafted, adapter_meta(grafted)), [open_scene(one) for one in images])
    write_features(Path(adapters[0]), found)
    say(f"wrote the features of {found.images} images into {adapters[0]}")
