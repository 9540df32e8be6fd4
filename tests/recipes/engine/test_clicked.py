"""Clicks on a volume for an adapter whose head takes them: where they arrive, and when the head is not asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.graft import Grafted, attach
from samgraft.domains.opening import open_scene
from samgraft.errors import ConfigError, PromptError
from samgraft.recipes import cli
from samgraft.recipes.data.slabs import Slabs
from samgraft.recipes.engine.clicked import slab_clicks
from samgraft.recipes.engine.run import segment, with_meta
from samgraft.recipes.prompting import UserPrompts
from samgraft.recipes.volume_prompts import VolumePrompt, VolumePrompts
from samgraft.volumetric.heads import Mla3dConfig
from samgraft.volumetric.heads.clicks import VolumeClicks
from samgraft.volumetric.heads.mla_3d import Mla3dHead
from tests.adapters.toy import toy_backbone
from tests.data.checkpoints import toy_sam, write_hf_folder
from tests.data.volumes import nifti

RECIPE = {"size": 32, "slab": 4, "slab_overlap": 0.5}
META = BundleMeta(classes={1: "thing"}, extra={"input": RECIPE})


def test_clicks_reach_the_slabs_and_windows_that_they_lie_in() -> None:
    """6 slices in slabs at 0 and 2; windows of 20 columns beside each other on slices of 10 x 40, at size 40.

    A window is centred in a square of 20, so its first row is 5 pixels down; two network pixels make one of it.
    """
    cut, places = Slabs(count=6, slab=4), [(slice(0, 10), slice(0, 20)), (slice(0, 10), slice(20, 40))]
    found = list(slab_clicks([(3.0, 2.0, 1, 1), (25.5, 9.0, 3, 0)], cut, places, 40))
    assert [one is None for one in found] == [False, False, True, False]
    first, second, _, later = found
    assert first is not None and second is not None and later is not None
    assert first.points.tolist() == [[[6.5, 14.5, 1.0]]] and first.labels.tolist() == [[1]]  # 2 (3 + 0.5) - 0.5
    assert second.points.tolist() == [[[11.5, 28.5, 3.0]]] and second.labels.tolist() == [[0]]  # 2 (5.5 + 0.5) - 0.5
    assert later.points.tolist() == [[[11.5, 28.5, 1.0]]]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """(i, j, k) = (30, 24, 6): slices 4 mm apart; the array is (6, 24, 30)."""
    rng = np.random.default_rng(1)
    return nifti(tmp_path / "scan.nii.gz", rng.normal(100, 20, (30, 24, 6)).astype(np.float32), np.diag([1.0, 1, 4, 1]))


def network(**options: Any) -> Grafted:
    torch.manual_seed(0)
    return attach(toy_backbone(), decoder=Mla3dConfig(**options)).eval()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[VolumeClicks | None]:
    """What the head is told, call by call."""
    heard: list[VolumeClicks | None] = []
    own = Mla3dHead.answer

    def listen(self: Mla3dHead, features: Any, image: Any, clicks: VolumeClicks | None) -> Any:
        heard.append(clicks)
        return own(self, features, image, clicks)

    monkeypatch.setattr(Mla3dHead, "answer", listen)
    return heard


def test_the_head_answers_points_and_says_so(scan: Path, told: list[VolumeClicks | None]) -> None:
    grafted = with_meta(network(clicks=4), META)
    plain = segment(scan, adapter=grafted, progress=False)
    assert told == [None, None]  # slabs at 0 and 2
    told.clear()
    points = UserPrompts(points=((7.0, 5.0, 1), (20.0, 5.0, 0)), slice=1, from_ground_truth=True)
    found = segment(scan, adapter=grafted, prompts=points, progress=False)
    assert told[0] is not None and told[1] is None and told[0].labels.tolist() == [[1, 0]]
    # 24 x 30 in a square of 30, three rows down, at 32 pixels
    expected = [(7.5 * 32 / 30 - 0.5, 8.5 * 32 / 30 - 0.5, 1.0), (20.5 * 32 / 30 - 0.5, 8.5 * 32 / 30 - 0.5, 1.0)]
    assert np.allclose(told[0].points[0].numpy(), expected, atol=1e-4)
    assert found.meta["mode"] == "clicked" and found.meta["clicks"] == "2" and found.from_ground_truth
    assert found.grid == open_scene(scan).grid and found.classes == {1: "thing"}
    assert plain.meta["mode"] == "automatic" and not np.array_equal(found.labels, plain.labels)
    assert np.array_equal(found.labels[4:], plain.labels[4:])  # slices that only the second slab sees
    told.clear()
    anywhere = VolumePrompts(objects=(VolumePrompt(points=((7.0, 5.0, 1, 1), (9.0, 5.0, 5, 1))),))
    segment(scan, adapter=grafted, prompts=anywhere, progress=False)
    assert [None if one is None else one.points[0, :, 2].tolist() for one in told] == [[1.0], [3.0]]


def test_boxes_and_heads_without_clicks_go_the_old_way(scan: Path, told: list[VolumeClicks | None]) -> None:
    box = UserPrompts(boxes=((4, 4, 20, 18),), slice=2)
    assert segment(scan, adapter=with_meta(network(clicks=4), META), prompts=box).meta.get("mode") != "clicked"
    point = UserPrompts(points=((7, 5, 1),), slice=2)
    assert segment(scan, adapter=with_meta(network(), META), prompts=point).meta.get("mode") != "clicked"
    assert not told


def test_what_the_head_cannot_take_is_refused(scan: Path) -> None:
    grafted = with_meta(network(clicks=4), META)
    with pytest.raises(PromptError, match=r"lie on slices of axis W, and the adapter cuts along D; give axis 0"):
        segment(scan, adapter=grafted, prompts=UserPrompts(points=((3, 3, 1),), axis=2))
    with pytest.raises(PromptError, match="lies outside"):
        segment(scan, adapter=grafted, prompts=UserPrompts(points=((30, 3, 1),)))
    single = BundleMeta(classes={1: "thing"}, extra={"input": {"size": 32}})
    with pytest.raises(ConfigError, match="clicks need an adapter that was trained on slabs"):
        segment(scan, adapter=with_meta(network(clicks=4), single), prompts=UserPrompts(points=((3, 3, 1),)))


def test_the_command_line_leads_there(
    scan: Path, tmp_path: Path, told: list[VolumeClicks | None], capsys: pytest.CaptureFixture[str]
) -> None:
    from samgraft.adapters.backbones import load_backbone

    backbone = load_backbone(write_hf_folder(tmp_path / "sam", toy_sam()))
    torch.manual_seed(0)
    save_bundle(tmp_path / "a.graft", attach(backbone, decoder=Mla3dConfig(clicks=4)), meta=META)
    words = ["segment", scan, "-a", tmp_path / "a.graft", "--backbone", tmp_path / "sam", "--point", 7, 5, 1]
    words += ["--point", 20, 6, 0, "--slice", 1, "-o", tmp_path / "m.nii.gz"]
    assert cli.main([*map(str, words)]) == 0, capsys.readouterr().err
    assert [None if one is None else one.labels.tolist() for one in told] == [[[1, 0]], None]
    assert open_scene(tmp_path / "m.nii.gz").grid.shape == (6, 24, 30)
