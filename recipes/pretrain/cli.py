"""``samgraft pretrain``: train graft-tiny, continue a run, or export its weights."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from samgraft.recipes.pretrain.export import export
from samgraft.recipes.pretrain.loop import PretrainConfig
from samgraft.recipes.pretrain.loop import run as train


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` (those after ``samgraft pretrain``) and do it."""
    parser = argparse.ArgumentParser(prog="samgraft pretrain", description=__doc__)
    for field in fields(PretrainConfig):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write graft_tiny.safetensors and .json there")
    parser.add_argument("--only-export", action="store_true", help="do not train, just export the run as it stands")
    parsed = vars(parser.parse_args(list(arguments)))
    folder, only = parsed.pop("export"), parsed.pop("only_export")
    config = PretrainConfig(**parsed)
    if not only:
        train(config)
    if folder is not None:
        print(export(Path(config.run), folder))
