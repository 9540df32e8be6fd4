"""Attached parts as a whole: which are trained, where they act and how large they are; whether tensors fit them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from samgraft.errors import CheckpointError

if TYPE_CHECKING:
    from samgraft.adapters.graft import Grafted


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a file with those that are expected.

    Raises:
        CheckpointError: unknown, missing, misshapen or non-finite tensors, by name.
    """
    unknown, missing = sorted(set(state) - set(own)), sorted(set(own) - set(state))
    if unknown or missing:
        raise CheckpointError(
            f"adapter tensors do not fit its configuration: unknown {unknown[:5]}, missing {missing[:5]}; "
            "the file is damaged or foreign"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise CheckpointError(f"adapter tensor {key!r} is {tuple(value.shape)}; expected {tuple(own[key].shape)}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"adapter tensor {key!r} holds NaN or infinity; the training diverged or the file is damaged"
            )


def trainable_table(grafted: "Grafted") -> str:
    """Plain text: part, method, insertion point, parameters, and their share of the backbone's."""
    attached = {id(parameter) for parameter in grafted.trainable_parameters()}
    frozen = sum(p.numel() for p in grafted.backbone.parameters() if id(p) not in attached)
    rows = [("part", "method", "insertion point", "parameters", "% of backbone")]

    def add(name: str, method: str, point: str, count: int) -> None:
        rows.append((name, method, point, f"{count:,}", f"{100 * count / max(frozen, 1):.3f}"))

    for name, graft in grafted._grafts().items():
        add(name, graft.config.method, "; ".join(graft.points), _count(graft))
    if grafted.prompter is not None and grafted.prompter_config is not None:
        add("prompter", grafted.prompter_config.method, grafted.prompter_config.point, _count(grafted.prompter))
    if grafted.decoder is not None and grafted.decoder_config is not None:
        add("decoder", grafted.decoder_config.method, grafted.decoder_config.point, _count(grafted.decoder))
    add("total", "", "", sum(parameter.numel() for parameter in grafted.trainable_parameters()))
    rows.append(("backbone", "frozen", grafted.backbone.spec.name, f"{frozen:,}", "100.000"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.rjust(w) if i > 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 8), *lines[1:]])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
