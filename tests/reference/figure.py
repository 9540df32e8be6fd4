"""The figure of a page: the network above, one block of its encoder below, with the points that a method uses marked.

Plain SVG with its own background and a second set of colours for dark pages; text is text, so it can be searched.
"""

from collections.abc import Iterator
from html import escape

from tests.reference.attachment import Attachment

WIDTH, HEIGHT = 980, 408
STYLE = """
.bg{fill:#ffffff;stroke:#d0d7de} .ink{fill:#1f2328} .dim{fill:#59636e} .head{fill:#6e7781}
.line{fill:none;stroke:#6e7781;stroke-width:1.4} .zoom{fill:none;stroke:#8c959f;stroke-dasharray:4 4}
.pen{fill:none;stroke:#8c959f} .box{fill:#f1f3f5;stroke:#8c959f}
.own{fill:#ffdf9e;stroke:#9a6700;stroke-width:2.4} .with{fill:#e3eefc;stroke:#0a5cc2;stroke-width:2.4}
.pill{fill:#ffffff;stroke:#8c959f} .pill+text{fill:#59636e}
.on{fill:#0a5cc2;stroke:#0a5cc2} .on+text{fill:#ffffff;font-weight:bold}
@media (prefers-color-scheme: dark){
.bg{fill:#151b23;stroke:#3d444d} .ink{fill:#e6edf3} .dim{fill:#aab3bd} .head{fill:#9198a1}
.line{stroke:#9198a1} .zoom{stroke:#6e7681} .pen{stroke:#6e7681} .box{fill:#262c36;stroke:#6e7681}
.own{fill:#5c4200;stroke:#e3b341} .with{fill:#12304f;stroke:#79b8ff}
.pill{fill:#151b23;stroke:#6e7681} .pill+text{fill:#aab3bd} .on{fill:#79b8ff;stroke:#79b8ff} .on+text{fill:#06182f}}
""".strip()

PIPELINE_Y, BLOCK_Y = 96, 300

BOXES = {
    "patch": (96, PIPELINE_Y, 112, ("patch embedding", "+ positions")),
    "neck": (492, PIPELINE_Y, 70, ("neck",)),
    "decoder": (640, PIPELINE_Y, 116, ("mask decoder", "transformer")),
    "head": (782, PIPELINE_Y, 102, ("tokens,", "upscaling, head")),
    "prompts": (648, 34, 100, ("prompts",)),
    "norm1": (84, BLOCK_Y, 56, ("norm1",)),
    "qkv": (166, BLOCK_Y, 58, ("q k v",)),
    "attention": (246, BLOCK_Y, 90, ("attention", "(windows)")),
    "proj": (358, BLOCK_Y, 46, ("proj",)),
    "norm2": (572, BLOCK_Y, 56, ("norm2",)),
    "mlp": (672, BLOCK_Y, 120, ("MLP (lin1, lin2)",)),
}
"""Layer -> left, middle, width, lines of text."""

PILLS = {
    "I0": (234, PIPELINE_Y, "I0"),
    "I8": (598, PIPELINE_Y, "I8"),
    "I9": (698, PIPELINE_Y + 32, "I9"),
    "I10": (833, PIPELINE_Y + 32, "I10"),
    "I1": (46, BLOCK_Y, "I1"),
    "I2": (195, BLOCK_Y - 24, "I2"),
    "tokens": (291, BLOCK_Y - 70, "tokens"),
    "I3": (425, BLOCK_Y, "I3"),
    "I4": (504, BLOCK_Y, "I4"),
    "I5": (732, BLOCK_Y - 92, "I5"),
    "I6": (732, BLOCK_Y - 62, "I6"),
    "I7": (732, BLOCK_Y - 24, "I7"),
}
"""Point -> middle x, middle y, text."""

ARROWS = (
    f"M62,{PIPELINE_Y}H92",
    f"M208,{PIPELINE_Y}H276",
    f"M452,{PIPELINE_Y}H488",
    f"M562,{PIPELINE_Y}H636",
    f"M756,{PIPELINE_Y}H778",
    f"M884,{PIPELINE_Y}H910",
    "M698,48V70",
    f"M20,{BLOCK_Y}H80",
    f"M140,{BLOCK_Y}H162",
    f"M224,{BLOCK_Y}H242",
    f"M336,{BLOCK_Y}H354",
    f"M404,{BLOCK_Y}H453",
    f"M475,{BLOCK_Y}H568",
    f"M628,{BLOCK_Y}H668",
    f"M792,{BLOCK_Y}H867",
    f"M889,{BLOCK_Y}H958",
    f"M291,{BLOCK_Y - 59}V{BLOCK_Y - 27}",
    f"M72,{BLOCK_Y}V{BLOCK_Y + 48}H464V{BLOCK_Y + 14}",
    f"M532,{BLOCK_Y}V{BLOCK_Y + 48}H878V{BLOCK_Y + 14}",
    f"M548,{BLOCK_Y}V{BLOCK_Y - 92}H878V{BLOCK_Y - 14}",
    f"M648,{BLOCK_Y}V{BLOCK_Y - 62}H875",
)


def figure(name: str, attachment: Attachment) -> str:
    """The SVG text for what ``attachment`` says."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12.5" text-anchor="middle">',
        f"<title>{escape(name)}: {escape(alternative(attachment))}</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0,0L8,4L0,8z"/></marker></defs>',
        f'<rect class="bg" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        f'<rect class="pen" x="10" y="168" width="{WIDTH - 20}" height="200" rx="8"/>',
        f'<path class="zoom" d="M282,{PIPELINE_Y + 26}L196,168M448,{PIPELINE_Y + 26}L532,168"/>',
    ]
    parts += [f'<path class="line" d="{path}" marker-end="url(#tip)"/>' for path in ARROWS]
    parts += _boxes(attachment)
    parts += [_plus(464), _plus(878)]
    for point, (x, y, label) in PILLS.items():
        parts += _pill(x, y, label, on=point in attachment.points)
    parts += _words()
    return "\n".join([*parts, "</svg>"]) + "\n"


def alternative(attachment: Attachment) -> str:
    """The same in one sentence, for those who do not see it."""
    texts = [f"parts at {', '.join(sorted(attachment.points, key=_rank))}"] if attachment.points else []
    texts += [f"parts around {', '.join(sorted(attachment.wrapped))}"] if attachment.wrapped else []
    texts += [f"trained tensors in {', '.join(sorted(attachment.layers))}"] if attachment.layers else []
    return "; ".join(texts) or "nothing is attached"


def _rank(point: str) -> tuple[int, str]:
    return (int(point[1:]), "") if point[1:].isdigit() else (99, point)


def where(attachment: Attachment) -> str:
    """Which blocks of the encoder are changed."""
    if not attachment.blocks:
        return "left alone"
    if len(attachment.blocks) == attachment.num_blocks:
        return "all changed"
    return "changed: " + ", ".join(str(block) for block in attachment.blocks)


def _boxes(attachment: Attachment) -> Iterator[str]:
    around = attachment.wrapped | attachment.points  # "prompts" is a point and a box
    for layer, (left, middle, width, lines) in BOXES.items():
        half = 14 if layer == "prompts" else 24
        kind = "own" if layer in attachment.layers else "with" if layer in around else "box"
        yield f'<rect class="{kind}" x="{left}" y="{middle - half}" width="{width}" height="{2 * half}" rx="5"/>'
        yield from _lines(left + width / 2, middle, lines)
    blocks = "own" if attachment.layers & {"norm1", "norm2", "qkv", "attention", "proj", "mlp"} else "box"
    for shift in (8, 4, 0):
        y = PIPELINE_Y - 24 - shift
        yield f'<rect class="{blocks}" x="{280 + shift}" y="{y}" width="164" height="48" rx="5"/>'
    yield from _lines(362, PIPELINE_Y, (f"encoder blocks 0 to {attachment.num_blocks - 1}", where(attachment)))


def _lines(x: float, middle: float, lines: tuple[str, ...]) -> Iterator[str]:
    first = middle + 4.5 - 8 * (len(lines) - 1)
    for index, line in enumerate(lines):
        yield f'<text class="ink" x="{x:g}" y="{first + 16 * index:g}">{escape(line)}</text>'


def _pill(x: float, y: float, label: str, *, on: bool) -> list[str]:
    width = 16 + 8 * len(label)
    kind = "on" if on else "pill"
    return [
        f'<rect class="{kind}" x="{x - width / 2:g}" y="{y - 11}" width="{width}" height="22" rx="11"/>'
        f'<text x="{x:g}" y="{y + 4.5:g}">{label}</text>'
    ]


def _plus(x: float) -> str:
    return (
        f'<circle class="pill" cx="{x}" cy="{BLOCK_Y}" r="10"/>'
        f'<path class="line" d="M{x - 6},{BLOCK_Y}H{x + 6}M{x},{BLOCK_Y - 6}V{BLOCK_Y + 6}"/>'
    )


def _words() -> Iterator[str]:
    yield f'<text class="ink" x="36" y="{PIPELINE_Y + 4}">image</text>'
    yield f'<text class="ink" x="936" y="{PIPELINE_Y + 4}">masks</text>'
    left = 'text-anchor="start"'
    yield f'<text class="dim" x="22" y="188" {left}>one block, x is (B, h, w, D)</text>'
    yield f'<text class="dim" x="760" y="{BLOCK_Y - 97}" {left}>reads x</text>'
    yield f'<text class="dim" x="760" y="{BLOCK_Y - 67}" {left}>reads norm2(x)</text>'
    yield '<rect class="on" x="22" y="379" width="30" height="18" rx="9"/><text/>'
    yield f'<text class="dim" x="60" y="392.5" {left}>a part is attached here</text>'
    yield '<rect class="own" x="222" y="379" width="30" height="18" rx="4"/>'
    yield f'<text class="dim" x="260" y="392.5" {left}>the layer&#8217;s own tensors are trained, on copies</text>'
    yield '<rect class="pill" x="532" y="379" width="30" height="18" rx="9"/><text/>'
    yield f'<text class="dim" x="570" y="392.5" {left}>not used with the default options</text>'
