"""``samgraft pretrain``: train graft-tiny, continue a run, export its weights, or draw pictures to train heads on."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from samgraft.recipes.pretrain.export import export
from samgraft.recipes.pretrain.loop import PretrainConfig
from samgraft.recipes.pretrain.loop import run as train
from samgraft.recipes.pretrain.objects import write_objects


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` (those after ``samgraft pretrain``) and do it."""
    parser = argparse.ArgumentParser(prog="samgraft pretrain", description=__doc__)
    for field in fields(PretrainConfig):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write graft_tiny.safetensors and .json there")
    parser.add_argument("--only-export", action="store_true", help="do not train, just export the run as it stands")
    parser.add_argument("--scenes", type=Path, metavar="FOLDER", help="draw pictures with numbered objects, and stop")
    parser.add_argument("--count", type=int, default=6000, help="--scenes: pictures to train on; a hundredth validates")
    parsed = vars(parser.parse_args(list(arguments)))
    scenes, number = parsed.pop("scenes"), parsed.pop("count")
    if scenes is not None:
        print(write_objects(scenes, train=number, val=max(1, number // 100), workers=os.cpu_count() or 1))
        return
    folder, only = parsed.pop("export"), parsed.pop("only_export")
    config = PretrainConfig(**parsed)
    if not only:
        train(config)
    if folder is not None:
        print(export(Path(config.run), folder))
