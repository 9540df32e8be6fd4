"""Follow every tensor and every operation of a computation, real or without values (meta and fake tensors).

What is counted is exact for what torch allocates: which storages exist when, what autograd keeps between forward and
backward, operations of matrix products and convolutions. What kernels allocate inside is not seen.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Kind = Literal["weights", "states", "gradients", "batch", "activations", "transient"]
KINDS: tuple[Kind, ...] = ("weights", "states", "gradients", "batch", "activations", "transient")
"""What a storage is for; "activations" outlive the forward pass, "transient" is everything else."""


def attention_operations(query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **options: Any) -> int:
    """Multiplications and additions of softmax(q k') v for (B, heads, queries, d) and (B, heads, keys, d)."""
    del rest, out_val, options
    batch, heads, queries, width = query.shape
    return int(2 * batch * heads * queries * key.shape[2] * (width + value.shape[-1]))


def attention_backward_operations(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """The same of its backward pass: five products instead of two."""
    del grad, rest, options
    return attention_operations(query, key, value) * 5 // 2


_aten = torch.ops.aten
OPERATIONS: Mapping[Any, Callable[..., Any]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_operations,
}
"""torch's formulas, which lack attention on a CPU. Our own attention is made of that and of plain products."""
ATTENTION = frozenset(
    packet for packet in OPERATIONS if any(word in str(packet) for word in ("bmm", "attention", "baddbmm"))
)
"""Products of many small matrices, which run slower than one of large ones."""
_FREE = frozenset({"prim.device", "aten.detach", "aten._local_scalar_dense", "aten.empty", "aten.new_empty"})


@dataclass
class Work:
    """What a stretch of computation does."""

    large: int = 0
    """Multiplications and additions in products of large matrices and in convolutions."""
    small: int = 0
    """The same in attention."""
    moved: int = 0
    """Bytes read and written by everything else."""
    calls: int = 0
    """Operations."""

    @property
    def operations(self) -> int:
        """Multiplications and additions, large and small."""
        return self.large + self.small

    def __sub__(self, other: "Work") -> "Work":
        """What was done since ``other``."""
        return Work(
            self.large - other.large, self.small - other.small, self.moved - other.moved, self.calls - other.calls
        )


@dataclass
class Block:
    """One storage."""

    size: int
    """Bytes."""
    kind: Kind = "transient"


@dataclass
class Trace:
    """What happened."""

    blocks: list[Block] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    """In order of time: i + 1 when block i appears, -(i + 1) when it goes."""
    work: Work = field(default_factory=Work)

    def live(self) -> int:
        """Bytes that exist now."""
        return sum(self.blocks[abs(e) - 1].size * (1 if e > 0 else -1) for e in self.events)

    def peak(self) -> dict[Kind, int]:
        """Bytes of each kind at the moment when most exist."""
        now = dict.fromkeys(KINDS, 0)
        most, total, best = -1, 0, now
        for event in self.events:
            block = self.blocks[abs(event) - 1]
            change = block.size if event > 0 else -block.size
            now[block.kind] += change
            total += change
            if total > most:
                most, best = total, dict(now)
        return best


class Tracer(TorchDispatchMode):
    """Record storages and work while active; ``with tracer: ...``.

    Attributes:
        trace: What was seen so far.
    """

    def __init__(self) -> None:
        """Nothing was seen."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._known: dict[int, tuple[int, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and write down what it did."""
        options = dict(kwargs or {})
        out = func(*args, **options)
        packet = func._overloadpacket
        if str(packet) in _FREE:
            self._see(out)
            return out
        self.trace.work.calls += 1
        new = self._see(out)
        if packet in OPERATIONS:
            done = int(OPERATIONS[packet](*args, **options, out_val=out))
            if packet in ATTENTION:
                self.trace.work.small += done
            else:
                self.trace.work.large += done
        elif new or func._schema.is_mutable:
            self.trace.work.moved += sum(_bytes(leaf) for leaf in tree_leaves((args, options, out)))
        return out

    def adopt(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Say what ``tensors`` are; those not seen yet count from now on."""
        for tensor in tensors:
            self._note(tensor)
            self._block(tensor).kind = kind

    def keep(self) -> int:
        """Call what exists and has no other name "activations"; returns the bytes of all that has that name."""
        for index, _ in self._known.values():
            block = self.trace.blocks[index]
            if block.kind == "transient":
                block.kind = "activations"
        kept = (self.trace.blocks[index] for index, _ in self._known.values())
        return sum(block.size for block in kept if block.kind == "activations")

    def done(self) -> Work:
        """A copy of the work so far."""
        work = self.trace.work
        return Work(work.large, work.small, work.moved, work.calls)

    def _see(self, out: Any) -> bool:
        """Note new storages; whether there were any."""
        if isinstance(out, Tensor):
            return self._note(out)
        return any([self._note(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)])

    def _block(self, tensor: Tensor) -> Block:
        return self.trace.blocks[self._known[tensor.untyped_storage()._cdata][0]]

    def _note(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        blocks, events, known = self.trace.blocks, self.trace.events, self._known
        blocks.append(Block(storage.nbytes()))
        number = len(blocks)
        events.append(number)

        def gone(_: Any) -> None:
            events.append(-number)
            known.pop(key, None)

        known[key] = (number - 1, weakref.ref(storage, gone))
        return True


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0


@contextlib.contextmanager
def saved_bytes(skip: Iterable[Tensor] = ()) -> Iterator[Callable[[], int]]:
    """Count what autograd saves for the backward pass inside the block, each storage once.

    Args:
        skip: Tensors that exist anyway, such as weights.

    Yields:
        A function that returns the bytes so far.
    """
    ignored = {tensor.untyped_storage()._cdata for tensor in skip}
    found: dict[int, torch.UntypedStorage] = {}  # held, so that an address is never used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ignored:
            found[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in found.values())
