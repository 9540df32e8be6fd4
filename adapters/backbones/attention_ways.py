"""Which of several exact ways computes attention with decomposed relative positions, by device and shape.

All give the same function (a test), and differ in what they cost:

- ``parts``: the bias is built for some queries at a time and handed to fused attention as a mask. Least memory; the
  quickest on every CPU shape that was measured (``python -m tests.benchmarks.attention``, docs/speed.md).
- ``augmented``: position terms are appended to the queries, one-hot row and column codes to the keys, so that plain
  fused attention computes the same logits without any bias. Wider heads: 64 + 128 channels at 1024 px.
- ``flex``: ``torch.nn.attention.flex_attention`` adds the two terms inside its kernel; needs a compiler for the device.

On a CPU the table is :data:`ON_CPU`. On other devices the ways are timed once per shape, on first use, and the quickest
is kept for the process; :func:`use_attention` decides instead of that.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import NoMatchError

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of query (B, n, S, d), key, value (B, n, S + p, d), row and column terms (B, n, S, h or w); gives (B, n, S, d)."""

ON_CPU = "parts"
"""Measured: quicker than ``augmented`` for windows and for whole images, at every size and number of threads."""
ELSEWHERE = "augmented"
"""Taken where nothing can be timed: while a graph is traced, compiled or captured."""

_forced: list[str] = []
_quickest: dict[tuple[object, ...], str] = {}


def augmented(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Positions as extra channels: ``[q, r, c] . [k, e_y, e_x] = q . k + r_y + c_x``; r and c divided by the scale.

    Args:
        query: (B, n, S, d); the logits use ``q . k / sqrt(d)``.
        key: (B, n, S + p, d); the last p have no position.
        value: As ``key``.
        rows: (B, n, S, h), added to the logits of all keys in a row of tokens.
        cols: (B, n, S, w), added to those in a column; S = h w.

    Returns:
        (B, n, S, d).
    """
    height, width, depth = rows.shape[-1], cols.shape[-1], query.shape[-1]
    eye = torch.eye(height, device=key.device, dtype=key.dtype), torch.eye(width, device=key.device, dtype=key.dtype)
    codes = torch.cat([eye[0].repeat_interleave(width, dim=0), eye[1].repeat(height, 1)], dim=-1)  # (S, h + w)
    wide_query = torch.cat([query, rows * depth**0.5, cols * depth**0.5], dim=-1)
    codes = functional.pad(codes, (0, 0, 0, key.shape[2] - len(codes)))
    wide_key = torch.cat([key, codes.expand(*key.shape[:2], -1, -1)], dim=-1)
    return functional.scaled_dot_product_attention(wide_query, wide_key, value, scale=depth**-0.5)


def flex(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The same through flex attention; arguments as for :func:`augmented`."""
    height, width = rows.shape[-1], cols.shape[-1]

    def score(logit: Tensor, image: Tensor, head: Tensor, own: Tensor, other: Tensor) -> Tensor:
        row, column = torch.clamp(other // width, max=height - 1), other % width
        bias = rows[image, head, own, row] + cols[image, head, own, column]
        return logit + torch.where(other < height * width, bias, torch.zeros_like(bias))

    found = _flex_kernel(query.device.type)(query, key, value, score_mod=score)
    return found if isinstance(found, Tensor) else found[0]


def choose(query: Tensor, rows: Tensor, cols: Tensor, ways: dict[str, Way]) -> str:
    """Name of the way to take for tensors like these.

    Args:
        query: (B, n, S, d).
        rows: (B, n, S, h).
        cols: (B, n, S, w).
        ways: What there is, by name.
    """
    if _forced:
        return _forced[-1]
    if query.device.type in ("cpu", "meta"):
        return ELSEWHERE if torch.compiler.is_compiling() else ON_CPU
    if torch.compiler.is_compiling() or (query.is_cuda and torch.cuda.is_current_stream_capturing()):
        return ELSEWHERE
    case = (query.device, query.dtype, *query.shape, rows.shape[-1], cols.shape[-1])
    if case not in _quickest:
        _quickest[case] = _time(query, rows, cols, ways)
    return _quickest[case]


@contextlib.contextmanager
def use_attention(way: str) -> Iterator[None]:
    """Take ``way`` ("parts", "augmented" or "flex") for all attention inside this block.

    Raises:
        NoMatchError: no such way.
    """
    if way not in ("parts", "augmented", "flex"):
        raise NoMatchError(f"attention {way!r} is not known; expected 'parts', 'augmented' or 'flex'")
    _forced.append(way)
    try:
        yield
    finally:
        _forced.pop()


@torch.no_grad()
def _time(query: Tensor, rows: Tensor, cols: Tensor, ways: dict[str, Way]) -> str:
    """The quickest of ``ways`` on random tensors of these shapes; one that fails here is left out."""
    like = [torch.randn_like(t) for t in (query, query, query, rows, cols)]
    seconds: dict[str, float] = {}
    for name, way in ways.items():
        with contextlib.suppress(RuntimeError, NotImplementedError, ImportError):
            seconds[name] = min(_once(way, like) for _ in range(4))
    return min(seconds, key=lambda name: seconds[name]) if seconds else ELSEWHERE


def _once(way: Way, tensors: list[Tensor]) -> float:
    accelerator = torch.accelerator.is_available()
    if accelerator:
        torch.accelerator.synchronize()
    start = time.perf_counter()
    way(*tensors)
    if accelerator:
        torch.accelerator.synchronize()
    return time.perf_counter() - start


_compiled: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {}


def _flex_kernel(device: str) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """Flex attention, compiled where that is what makes it fused; on a CPU as it is, for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    plain: Callable[..., Tensor | tuple[Tensor, ...]] = flex_attention
    if device not in _compiled:
        _compiled[device] = plain if device == "cpu" else torch.compile(plain, dynamic=False)
    return _compiled[device]
