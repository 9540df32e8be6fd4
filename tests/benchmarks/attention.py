"""Which way of attention is the quickest where: ``python -m tests.benchmarks.attention``, with nothing else running.

The shapes of SAM-B at 1024 px and of graft-tiny at 256 px, windows and whole images. ``transformers`` is how its SDPA
path does it: the whole bias in memory, handed to fused attention as a mask. On an accelerator (``--device cuda``) this
is what ``attention_ways.choose`` finds out for itself.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.attention import WAYS, position_terms, relative_table
from tests.benchmarks._table import markdown, write_json

SHAPES = {
    "SAM-B window": (25, 12, (14, 14), 64),
    "SAM-B whole": (1, 12, (64, 64), 64),
    "graft-tiny window": (16, 6, (8, 8), 32),
    "graft-tiny whole": (1, 6, (32, 32), 32),
}
"""Images or windows, heads, tokens (rows, columns), channels of a head."""


def whole_bias(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The bias of all pairs of tokens as one tensor."""
    bias = (rows[..., :, None] + cols[..., None, :]).flatten(3)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """The quickest of ``repeats`` calls after two that warm up."""
    found = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[2:])


@torch.no_grad()
def row(name: str, device: str, dtype: torch.dtype, threads: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of every way on one shape; position terms are part of what is timed."""
    torch.set_num_threads(threads)
    images, heads, grid, depth = SHAPES[name]
    shape = (images, heads, grid[0] * grid[1], depth)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    tables = [torch.randn(2 * side - 1, depth, device=device, dtype=dtype) * 0.1 for side in grid]
    rel = (relative_table(tables[0], grid[0]), relative_table(tables[1], grid[1]))
    result: dict[str, Any] = {"shape": name, "dtype": str(dtype).removeprefix("torch."), "threads": threads}
    for way, function in ({"transformers": whole_bias} | WAYS).items():
        if way == "flex" and device == "cpu":
            continue  # not fused there
        try:
            spent = seconds(lambda f=function: f(query, key, value, *position_terms(query, rel)), device, repeats)
        except RuntimeError:
            continue  # this device has no such kernel
        result[f"{way}_ms"] = spent * 1000
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.attention", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/attention.json"))
    options = parser.parse_args(argv)
    rows = [
        row(name, options.device, getattr(torch, dtype), threads, options.repeats)
        for name in SHAPES
        for dtype in options.dtypes
        for threads in options.threads
    ]
    print(markdown(rows))
    write_json(options.json, {"results": rows, "device": options.device})


if __name__ == "__main__":
    main()
