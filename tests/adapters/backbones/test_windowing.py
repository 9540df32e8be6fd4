"""Windows of a token map: where they lie, and the order of tokens by window and head."""

import pytest
import torch

from samgraft.adapters.backbones.windowing import by_head, from_heads, spans


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [
        (32, 14, [(0, 28, 14, 2, slice(0, 28)), (28, 4, 4, 1, slice(28, 42))]),
        (28, 14, [(0, 28, 14, 2, slice(0, 28))]),
        (5, 14, [(0, 5, 5, 1, slice(0, 14))]),
    ],
)
def test_spans_part_whole_windows_from_the_one_that_reaches_beyond_the_map(
    length: int, size: int, expected: list[tuple[int, int, int, int, slice]]
) -> None:
    found = [(span.start, span.length, span.inside, span.count, span.place) for span in spans(length, size)]
    assert found == expected


def test_tokens_by_head_stand_window_by_window_and_come_back() -> None:
    x = torch.arange(2 * 4 * 6 * 2 * 3 * 5, dtype=torch.float32).reshape(2, 4, 6, 2 * 3 * 5)
    found = by_head(x, 3, (2, 3), of=2)
    assert found.shape == (2, 2 * 2 * 2, 3, 6, 5)
    window = x[1, 2:4, 3:6]  # the last of image 1
    assert torch.equal(found[1, -1, 2], window.reshape(6, 2, 3, 5)[:, 1, 2])
    assert torch.equal(from_heads(found[1], (2, 3), (4, 6)), x[..., 15:])
