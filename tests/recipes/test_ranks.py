"""Several processes: what each of them does alone, and that two over gloo train as one would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import monai.losses
import pytest
import torch

from samgraft.errors import ConfigError
from samgraft.recipes.augment import augment, augment_views
from samgraft.recipes.commands.fit import shared_folder
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TrainConfig
from samgraft.recipes.data.module import BalancedSampler
from samgraft.recipes.losses import SegmentationLoss
from samgraft.recipes.ranks import ALONE, Share, current, from_first, gather, launched_rank, sum_over_ranks
from tests.data.checkpoints import toy_sam, write_hf_folder
from tests.recipes import _ranks
from tests.recipes._sets import write_pictures

SPLIT = [{"train": ["P0", "P1"], "val": ["P2", "P3"]}]
"""Three validation cases: one process has a case more than the other."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind, beside the data set ``data``."""
    root = tmp_path_factory.mktemp("ranks")
    data = write_pictures(root / "data", cases=7)
    (data / "splits.json").write_text(json.dumps(SPLIT))
    _ranks.start_ranks(root, data)
    return root


@pytest.mark.parametrize(("job", "run"), [("class_tokens", "class_tokens"), ("lora", "lora"), ("fsdp", "lora")])
def test_two_processes_train_as_one(folder: Path, job: str, run: str, tmp_path: Path) -> None:
    first, second = (_ranks.result(folder, rank, job) for rank in (0, 1))
    alone = _ranks.train(_ranks.config(run, folder / "data"), tmp_path / "run")
    assert set(first) == set(second) == set(alone)
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("job", ["class_tokens", "lora", "fsdp"])
def test_first_process_alone_writes(folder: Path, job: str) -> None:
    run = folder / job
    steps = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "val/dice" in row] == [3, 6]
    facts = json.loads((run / "metrics.json").read_text())
    assert [score["case"] for score in facts["scores"]] == ["P2-004", "P2-005", "P3-006"]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 6 and not any(".backbone." in key for key in state["state_dict"])


def test_loss_is_that_of_the_whole_batch(folder: Path) -> None:
    """Foreground and unknown pixels lie on one side, so a mean of the processes' losses is far from it."""
    whole = _ranks.loss_and_gradient(slice(0, 4), world=1)
    halves = [_ranks.loss_and_gradient(slice(0, 2), world=1), _ranks.loss_and_gradient(slice(2, 4), world=1)]
    assert abs(sum(float(half["loss"]) for half in halves) / 2 - float(whole["loss"])) > 0.05
    for rank in (0, 1):
        found = _ranks.result(folder, rank, "loss")
        torch.testing.assert_close(found["loss"], whole["loss"], rtol=1e-6, atol=0)
        # DDP averages the gradients of the processes; each has 0 for the rows of the other
        torch.testing.assert_close(found["gradient"], whole["gradient"][2 * rank : 2 * rank + 2], rtol=1e-5, atol=1e-9)


def test_a_stopped_run_goes_on(folder: Path) -> None:
    """FSDP splits what DDP holds whole, so equal weights say that the optimiser came back complete, too."""
    found = [_ranks.result(folder, rank, f"{job}_resumed") for job in ("ddp", "fsdp") for rank in (0, 1)]
    assert [int(state["numbers"][0]) for state in found] == [6] * 4
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor) and torch.equal(found[2][name], found[3][name]), name
        torch.testing.assert_close(found[2][name], tensor, rtol=0, atol=1e-6)


def test_the_first_clock_counts_for_all(folder: Path) -> None:
    """The second process believes that the hour is over after the first step."""
    first, second = (_ranks.result(folder, rank, "clock") for rank in (0, 1))
    assert first["numbers"][0] == 6
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_loss_of_one_process_is_monai_s() -> None:
    logits, labels = torch.randn(3, 4, 9, 7), torch.randint(0, 4, (3, 9, 7))
    reference = monai.losses.DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    expected = reference(logits, labels.unsqueeze(1))
    torch.testing.assert_close(SegmentationLoss()(logits, labels), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(world: int) -> None:
    flags = [index % 3 == 0 for index in range(20)]
    options = {"share": 0.5, "length": 32, "seed": 3, "batch": 8}
    alone = BalancedSampler(flags, **options)  # type: ignore[arg-type]
    parts = [BalancedSampler(flags, **options, part=Share(rank=r, world=world)) for r in range(world)]  # type: ignore[arg-type]
    for sampler in (alone, *parts):
        sampler.set_epoch(2)
    own, drawn = 8 // world, [list(part) for part in parts]
    assert all(len(part) == len(items) for part, items in zip(parts, drawn, strict=True))
    together = [i for step in range(4) for items in drawn for i in items[step * own : (step + 1) * own]]
    assert together == list(alone)
    with pytest.raises(ConfigError, match="multiple of 3"):
        BalancedSampler(flags, **options, part=Share(rank=0, world=3))  # type: ignore[arg-type]


@pytest.mark.parametrize("views", [0, 3])
def test_processes_change_images_as_one(views: int) -> None:
    image, label = torch.rand(4, 3, 32, 32), torch.randint(-1, 3, (4, 32, 32))
    config = AugmentConfig(flip_x=True, quarter_turns=True, elastic=0.02, colour=0.1)

    def change(rows: slice, share: Share) -> list[torch.Tensor]:
        generator, found = torch.Generator().manual_seed(7), []
        for _ in range(2):  # the second batch shows that the generators still agree
            if views:
                found += augment_views(image[rows], label[rows], generator, config, views, share=share)
            else:
                found += augment(image[rows], label[rows], generator, config, share=share)
        return found

    whole = change(slice(0, 4), ALONE)
    for rank in (0, 1):
        rows = slice(2 * rank, 2 * rank + 2)
        for part, expected in zip(change(rows, Share(rank=rank, world=2)), whole, strict=True):
            torch.testing.assert_close(part, expected[rows], rtol=0, atol=1e-6)


def test_one_process_talks_to_itself() -> None:
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert current() == ALONE and sum_over_ranks(tensor) is tensor
    assert gather("x") == ["x"] and from_first(3.5) == 3.5


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"NODE_RANK": "1"}, 4),
        ({"NODE_RANK": "1", "LOCAL_RANK": "2", "SLURM_PROCID": "0"}, 6),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"SLURM_PROCID": "5"}, 5),
    ],
)
def test_rank_before_there_is_a_group(environment: dict[str, str], rank: int) -> None:
    assert launched_rank(4, environment) == rank


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size is 6; it is shared by 4 processes .* such as 8"):
        FitConfig(data=DataConfig(batch_size=6), train=TrainConfig(devices=2, num_nodes=2))
    for options in ({"devices": 0}, {"num_nodes": 0}, {"strategy": "dp"}):
        with pytest.raises(ConfigError, match=f"train.{next(iter(options))} is"):
            TrainConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Share(rank=2, world=2)


def test_processes_agree_on_the_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    two = TrainConfig(devices=2)
    for name in ("LOCAL_RANK", "RANK", "SAMGRAFT_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    folder = shared_folder(["--config", "nuclei"], None, two)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert shared_folder(["--config", "nuclei"], None, two) == folder == Path(os.environ["SAMGRAFT_RUN_FOLDER"])
    monkeypatch.delenv("SAMGRAFT_RUN_FOLDER")
    with pytest.raises(ConfigError, match="add --output FOLDER, the same for all"):
        shared_folder([], None, two)
    assert shared_folder([], "out", two) == Path("out")


def test_command_line_starts_two_processes(tmp_path: Path, repo_root: Path) -> None:
    write_pictures(tmp_path / "p", cases=5)
    write_hf_folder(tmp_path / "sam", toy_sam())
    words = "fit --data p --data.layout image_mask --task.backbone sam --size 64 --batch-size 4 --steps 2"
    words += " --train.val_every 2 --train.progress false --train.accelerator cpu --train.devices 2"
    words += " --train.strategy ddp -o run"
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "samgraft", *words.split()],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(repo_root / ".src")},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: run") == done.stdout.count("adapter: run/adapter.graft") == 1
    assert done.stdout.count("dice/mean") == 1 and "Warning" not in done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 2
