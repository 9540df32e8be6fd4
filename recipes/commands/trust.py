"""``samgraft trust``: calibrate "look at this one" of an adapter on validation cases, and store it in its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import add_fit_config, fit_words, new_parser, parse, say, to_fit_config

if TYPE_CHECKING:
    from samgraft.volumetric.trust import Calibration


def run(arguments: Sequence[str]) -> None:
    """Predict the validation cases and their mirror images, fit, store, and say how reliable it is."""
    parser = new_parser(
        "trust",
        "Calibrate how far results of an adapter can be trusted, on validation cases, and store it in the adapter. "
        "No label reaches the network.",
    )
    parser.add_argument("-a", "--adapter", required=True, help="adapter file; its header is rewritten")
    parser.add_argument("--good-dice", type=float, default=0.8, help="a structure is good from this Dice on")
    parser.add_argument("--form", default="logistic", choices=("logistic", "isotonic"))
    parser.add_argument(
        "--prompted",
        action="store_true",
        help="calibrate objects that are propagated from a box on their key slice (drawn from labels) instead",
    )
    parser.add_argument("--flag-below", type=float, default=0.5, help="flag structures below this probability")
    add_fit_config(parser)
    values = parse(parser, fit_words(arguments))
    config = to_fit_config(parser, values)
    if not config.data.path:
        raise ConfigError("no data set named; add --data PATH")

    from samgraft.recipes.training import load_adapted
    from samgraft.recipes.trusting import fit_trust, store_trust

    adapter = Path(values.adapter)
    how = {"good_dice": values.good_dice, "form": values.form, "flag_below": values.flag_below}
    if values.prompted:
        found = {"": _prompted(adapter, config.data.path, how)}
    else:
        task, data = load_adapted(config, adapter)
        task.grafted.eval()
        found = fit_trust(task, [ref.load() for ref in data.val_refs], **how)
    store_trust(adapter, "prompted" if values.prompted else "automatic", found)
    for name, one in found.items():
        say(f"{name or 'objects'}: {one.good} of {one.cases} reach Dice {one.good_dice:g} in validation ({one.form})")
    say(f"wrote {adapter}")


def _prompted(adapter: Path, data: str, how: dict[str, Any]) -> "Calibration":
    """Of objects that are propagated, by the adapter if it answers prompts, else by its backbone."""
    from samgraft.recipes.api import load_adapter
    from samgraft.recipes.engine.asking import answering
    from samgraft.recipes.prompted_trust import fit_prompted_trust, validation_cases

    grafted = load_adapter(adapter)
    try:
        with answering(grafted) as network:
            return fit_prompted_trust(network, validation_cases(data), **how)
    finally:
        grafted.detach()
