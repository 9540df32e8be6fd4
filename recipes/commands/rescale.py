"""``samgraft rescale``: the same adapter for images of another modality."""

from collections.abc import Sequence

from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Write the adapter with another scale of values."""
    parser = plain_parser(
        "rescale",
        "Write an adapter that looks at images of another modality as an adapter of that modality would. Its weights "
        "stay; only the scale of values in its header is another one.",
    )
    parser.add_argument("adapter", help="adapter file; it stays as it is")
    parser.add_argument("--modality", required=True, help="what the images are: MR, CT, ...")
    parser.add_argument(
        "--intensity", type=float, nargs=2, default=None, metavar=("LOWER", "UPPER"), help="a fixed window instead"
    )
    parser.add_argument("-o", "--output", required=True, help="adapter file to write")
    values = parser.parse_args(list(arguments))

    from samgraft.adapters.bundle import read_meta
    from samgraft.recipes.rescaling import rescale_adapter

    window = None if values.intensity is None else (values.intensity[0], values.intensity[1])
    written = rescale_adapter(values.adapter, values.output, modality=values.modality, intensity=window)
    meta = read_meta(written)
    say(f"adapter: {written}, for {meta.modality}: {meta.intensity or 'scale as each file looks'}")
