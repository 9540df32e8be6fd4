"""The pages of docs/methods are those that the code gives now, and what they tell a reader to type works.

After a wanted change ``python -m tests.reference`` writes the pages anew; commit them with the code.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import samgraft
from samgraft.adapters.grafts import GRAFTS, BottleneckConfig, DecoderLoraConfig, FullConfig, LoraConfig, VptConfig
from samgraft.recipes.assemble import build_network
from samgraft.recipes.commands.parsing import read_fit_config
from samgraft.registry import Registry
from tests.adapters.toy import toy_backbone
from tests.reference import figure
from tests.reference.attachment import LAYERS, POINTS, SITES, Attachment, measure
from tests.reference.facts import Method, methods, recipe_refusal
from tests.reference.page import COMMAND, python, recipe
from tests.reference.write import DOCS, FOLDER, documents, outdated, stray, write

METHODS = methods()
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.page)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return documents()


def test_pages_are_what_the_code_says(texts: dict[str, str]) -> None:
    advice = f"run {COMMAND} and commit docs/methods"
    assert outdated(texts) == [], advice
    assert [str(path) for path in stray(texts)] == [], advice


def test_every_method_has_a_page_a_figure_and_a_row(texts: dict[str, str]) -> None:
    assert len({method.page for method in METHODS}) == len(METHODS)
    for method in METHODS:
        assert f"# {method.name}\n" in texts[f"{method.page}.md"]
        assert f"](figures/{method.page}.svg)" in texts[f"{method.page}.md"]
        assert f"| [{method.name}]({method.page}.md)" in texts["README.md"]


def test_links_lead_to_files(texts: dict[str, str]) -> None:
    pages = {FOLDER / name: text for name, text in texts.items() if name.endswith(".md")}
    pages |= {DOCS / name: (DOCS / name).read_text() for name in ("misquoted_figures.md", "architecture.md")}
    missing = {
        (path.name, link)
        for path, text in pages.items()
        for link in re.findall(r"\]\(([^)#]+)\)", text)
        if "://" not in link and not (path.parent / link).exists()
    }
    assert missing == set()
    assert "](methods/README.md)" in pages[DOCS / "architecture.md"]


def test_no_page_holds_a_time_or_a_place(texts: dict[str, str]) -> None:
    pattern = re.compile(r"\b20\d\d-\d\d|\b\d\d:\d\d\b|/work/|/home/|/tmp/|0x[0-9a-f]{6}")
    assert {name: found[0] for name, text in texts.items() if (found := pattern.search(text))} == {}


def test_parameters_of_lora_and_vpt_are_those_of_the_formulas(texts: dict[str, str]) -> None:
    for cells in ("SAM ViT-B 147,456 0.157 %", "SAM ViT-L 393,216 0.126 %", "SAM ViT-H 655,360 0.102 %"):
        assert cells in " ".join(texts["lora.md"].replace("|", " ").split())
    assert f"{12 * (5 * 768 + 1):,}" in texts["vpt.md"]


@each_method
def test_recipe_of_a_page_builds_the_default(method: Method, tmp_path: Path, texts: dict[str, str]) -> None:
    text = recipe(method)
    if refusal := recipe_refusal(method):
        assert text not in texts[f"{method.page}.md"], refusal
        return
    assert f"```yaml\n{text}```" in texts[f"{method.page}.md"]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    network = build_network(read_fit_config(path).task, num_classes=1, backbone=toy_backbone())
    built: dict[str, Any] = {
        "graft": network.configs.get(method.name),
        "prompter": network.prompter_config,
        "decoder": network.decoder_config,
    }
    assert built[method.role] == method.config()
    assert set(network.configs) == ({method.name} if method.role == "graft" else set())


@each_method
def test_python_of_a_page_runs(
    method: Method, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = python(method)
    assert f"```python\n{code}```" in texts[f"{method.page}.md"]
    monkeypatch.setattr(samgraft, "load_backbone", lambda name: toy_backbone())
    space: dict[str, Any] = {}
    exec(code, space)
    grafted = space["grafted"]
    configs = [*grafted.configs.values(), grafted.prompter_config, grafted.decoder_config]
    assert [config for config in configs if config is not None] == [method.config()]
    assert method.name in capsys.readouterr().out


@each_method
def test_every_option_is_explained(method: Method) -> None:
    assert [option.name for option in method.options if not option.meaning] == []
    assert method.text.summary.endswith(".")


@each_method
def test_every_method_is_seen_in_its_figure(method: Method) -> None:
    found = measure(toy_backbone(), method.config(), method.role)
    assert found.points | found.layers | found.wrapped
    assert found.other == (), "a path of the backbone that tests/reference/attachment.py cannot place"
    if method.role == "graft":
        assert bool(found.blocks or found.points == {"I8"}) == (method.config.part == "encoder")


@pytest.mark.parametrize(
    ("config", "points", "layers", "blocks"),
    [
        (LoraConfig(blocks="last:2"), {"I2"}, set(), (1, 2)),
        (LoraConfig(targets=("proj", "lin1"), blocks=(0,)), {"I3", "I7"}, set(), (0,)),
        (BottleneckConfig(), {"I3", "I6"}, set(), (0, 1, 2)),
        (VptConfig(), {"tokens"}, set(), (0, 1, 2)),
        (DecoderLoraConfig(), {"I9"}, set(), ()),
        (GRAFTS.get("layer_norm")(), set(), {"norm1", "norm2"}, (0, 1, 2)),
        (
            FullConfig(blocks="last:1", decoder=False),
            set(),
            {*figure.BOXES} - {"patch", "decoder", "head", "prompts"},
            (2,),
        ),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_attachment_is_seen_in_the_backbone(config: Any, points: set[str], layers: set[str], blocks: Any) -> None:
    backbone = toy_backbone()
    before = dict(backbone.named_modules())
    found = measure(backbone, config, "graft")
    assert (found.points, found.layers, found.blocks, found.num_blocks) == (
        frozenset(points),
        frozenset(layers),
        blocks,
        3,
    )
    assert dict(backbone.named_modules()) == before


def test_figure_marks_what_is_used_and_nothing_else() -> None:
    used = Attachment(points=frozenset({"I2", "prompts"}), layers=frozenset({"neck"}), blocks=(1,), num_blocks=3)
    root = ElementTree.fromstring(figure.figure("a & b", used))
    space = "{http://www.w3.org/2000/svg}"
    children = list(root)
    marked = [
        after.text
        for node, after in zip(children, children[1:], strict=False)
        if node.tag == f"{space}rect" and node.get("class") in ("on", "own", "with") and after.tag == f"{space}text"
    ]
    assert [text for text in marked if text and not text.startswith(("a part", "the layer"))] == [
        "neck",
        "prompts",
        "I2",
    ]
    assert root.findtext(f"{space}title") == "a & b: parts at I2, prompts; trained tensors in neck"
    assert "changed: 1" in [node.text for node in root.iter(f"{space}text")]


def test_figure_has_a_place_for_everything_that_can_be_found() -> None:
    assert set(POINTS) == {*figure.PILLS, "prompts"}
    assert {layer for _, _, layer in LAYERS} == set(figure.BOXES)
    assert set(SITES.values()) | {point for _, point, _ in LAYERS} - {""} <= set(POINTS)


def test_names_that_two_roles_share_get_pages_of_their_own() -> None:
    grafts, decoders = Registry[Any]("graft"), Registry[Any]("decoder")
    for registry in (grafts, decoders):
        registry.register("lora")(LoraConfig)
    assert [method.page for method in methods({"graft": grafts, "decoder": decoders})] == ["lora", "lora_decoder"]


def test_write_touches_what_is_outdated_only(tmp_path: Path) -> None:
    texts = {"a.md": "one\n", "figures/a.svg": "<svg/>\n"}
    assert write(texts, tmp_path) == ["a.md", "figures/a.svg"]
    assert write({**texts, "a.md": "two\n"}, tmp_path) == ["a.md"]
    assert (tmp_path / "a.md").read_text() == "two\n"
    assert outdated(texts, tmp_path) == ["a.md"]
    assert stray({"a.md": ""}, tmp_path) == [tmp_path / "figures" / "a.svg"]
