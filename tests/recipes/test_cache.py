"""Kept features: the same numbers with and without, whatever happens to the files; bounded, shared, killed."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import BottleneckConfig, LoraConfig
from samgraft.adapters.prompts import AutoSamConfig
from samgraft.errors import ConfigError
from samgraft.recipes.augment import augment_views
from samgraft.recipes.cache.features import CachedEncoder, feature_key
from samgraft.recipes.cache.store import STALE_SECONDS, FeatureStore, narrow
from samgraft.recipes.cli import main
from samgraft.recipes.config import AugmentConfig
from tests.adapters.toy import toy_backbone, toy_image


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def whole() -> Grafted:
    return attach(toy_backbone(), decoder=ClassTokensConfig(num_classes=2))


def late() -> Grafted:
    graft = BottleneckConfig(ratio=0.25, blocks="last:1")
    return attach(toy_backbone(), graft, decoder=ClassTokensConfig(num_classes=2, taps=(0, 2)))


def first() -> Grafted:
    return attach(toy_backbone(), LoraConfig(rank=2), decoder=ClassTokensConfig(num_classes=2))


@pytest.mark.parametrize(("build", "blocks", "encoder"), [(whole, 3, True), (late, 2, False), (first, 0, False)])
def test_frozen_part_ends_at_the_first_graft(build, blocks, encoder) -> None:
    grafted = build()
    assert (grafted.frozen_blocks(), grafted.frozen_encoder()) == (blocks, encoder)


def test_merged_grafts_are_not_frozen() -> None:
    grafted = attach(toy_backbone(), LoraConfig(rank=2, blocks="last:1"), decoder=ClassTokensConfig())
    assert grafted.frozen_blocks() == 2
    grafted.merge()
    assert (grafted.frozen_blocks(), grafted.frozen_encoder()) == (0, False)


@pytest.mark.parametrize("build", [whole, late, first])
def test_features_differ_by_rounding_only_and_warm_equals_cold(build, store: FeatureStore) -> None:
    grafted, image = build(), toy_image()
    plain = grafted.encode(image)
    encoder = CachedEncoder(grafted, store)
    cold, warm = encoder(image), encoder(image)
    assert (encoder.hits, encoder.misses) == ((0, 0) if build is first else (len(image), len(image)))
    assert set(cold.taps) == set(plain.taps)
    for name in ("neck", *plain.taps):
        exact, one, two = (f.neck if name == "neck" else f.taps[name] for f in (plain, cold, warm))
        assert torch.equal(one, two)
        if build is whole:  # rounded once, nothing computed on top
            assert ((one - exact).abs() <= 2**-11 * exact.abs() + 2**-24).all()
        torch.testing.assert_close(one, exact, rtol=2e-3, atol=2e-3)


def test_gradients_reach_the_grafts_through_kept_tokens(store: FeatureStore) -> None:
    grafted, image = late().train(), toy_image()
    grafted.predict(image, features=CachedEncoder(grafted, store)(image)).logits.square().mean().backward()
    assert all(p.grad is not None for p in grafted.trainable_parameters())


def test_adapters_share_entries_and_other_weights_or_pixels_do_not(store: FeatureStore) -> None:
    image = toy_image()
    CachedEncoder(whole(), store)(image)
    another = CachedEncoder(attach(toy_backbone(), decoder=ClassTokensConfig(num_classes=7)), store)
    another(image)
    assert (another.hits, another.misses) == (len(image), 0)
    backbone = toy_backbone()
    key = feature_key(backbone, image[0], "neck", (0,))
    assert key != feature_key(backbone, image[0].flip(-1), "neck", (0,))
    assert key != feature_key(backbone, image[0], "2", (0,)) != feature_key(backbone, image[0], "2", (0, 1))
    backbone._hash = "0" * 64
    assert key != feature_key(backbone, image[0], "neck", (0,))


def test_only_missing_views_are_computed(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    grafted, image = whole(), toy_image()
    encoder = CachedEncoder(grafted, store)
    encoder(image[:1])
    seen: list[int] = []
    prefix = type(grafted.backbone).prefix

    def counted(self: object, picture: Tensor, *rest: object) -> object:
        seen.append(len(picture))
        return prefix(self, picture, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(grafted.backbone), "prefix", counted)
    encoder(image)
    assert seen == [1]


def test_training_follows_the_same_curve(store: FeatureStore) -> None:
    """Cold, warm and without the store, on the same batches."""

    def losses(encoder: bool) -> list[float]:
        torch.manual_seed(0)
        grafted = whole().train()
        cached = CachedEncoder(grafted, store)
        optimizer = torch.optim.AdamW(grafted.trainable_parameters(), lr=1e-3)
        image = toy_image()
        target = (image.mean(1) > 0.5).long()[:, ::2, ::2]
        found = []
        for _ in range(6):
            features = cached(image) if encoder else None
            loss = torch.nn.functional.cross_entropy(grafted.predict(image, features=features).logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    plain, cold, warm = losses(False), losses(True), losses(True)
    assert cold == warm
    assert plain[-1] < plain[0]
    np.testing.assert_allclose(cold, plain, rtol=0, atol=2e-3)


def test_prompt_generators_are_frozen_encoders_too(store: FeatureStore) -> None:
    grafted, image = attach(toy_backbone(), prompter=AutoSamConfig(channels=16)), toy_image()
    encoder = CachedEncoder(grafted, store)
    torch.testing.assert_close(
        grafted.predict(image, features=encoder(image)).logits, grafted.predict(image).logits, rtol=0, atol=0.05
    )
    assert encoder.misses == len(image)


def test_values_that_fp16_cannot_hold_stay_as_they_are(store: FeatureStore) -> None:
    tensors = {"large": torch.tensor([1e6, 1.0]), "small": torch.tensor([0.1, -2.0])}
    store.put("ab" * 20, tensors)
    found = store.get("ab" * 20)
    assert found is not None
    assert torch.equal(found["large"], tensors["large"]) and found["small"].dtype == torch.float16
    assert narrow(torch.tensor([float("nan")])).dtype == torch.float32


def test_damaged_entry_is_computed_again(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    grafted, image = whole(), toy_image()
    encoder = CachedEncoder(grafted, store)
    before = encoder(image)
    for path in store.folder.glob("??/*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(encoder(image).neck, before.neck)
    assert "is damaged" in caplog.text
    assert encoder.misses == 2 * len(image)


def test_size_is_bounded_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, limit_gb=20e-6)  # 20 kB
    entry = {"x": torch.randn(1000)}  # 2 kB in fp16
    keys = [f"{i:040x}" for i in range(30)]
    store.put(keys[0], entry)
    for age, key in enumerate(keys[1:], start=1):
        store.put(key, entry)
        os.utime(store.path(key), (age, age))
        assert store.get(keys[0]) is not None  # always in use
    about = store.info()
    assert about.size <= store.limit and 5 <= about.entries < 10
    assert store.get(keys[1]) is None and store.get(keys[-1]) is not None


def test_prune_takes_stale_temporary_files_and_leaves_young_ones(store: FeatureStore) -> None:
    store.put("cd" * 20, {"x": torch.zeros(3)})
    folder = store.path("cd" * 20).parent
    old, young = folder / "a.tmp", folder / "b.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - 2 * STALE_SECONDS
    os.utime(old, (past, past))
    assert store.prune() == (0, 0)
    assert not old.exists() and young.exists() and store.info().entries == 1


def test_a_full_disk_ends_the_writing_not_the_run(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samgraft.recipes.cache.store.save_file", full)
    grafted, image = whole(), toy_image()
    assert CachedEncoder(grafted, store)(image).neck.shape[0] == len(image)
    assert "No space left" in caplog.text and not store.writable
    assert store.info().entries == 0 and not list(store.folder.rglob("*.tmp"))


def _write_for_ever(folder: str) -> None:
    store, number = FeatureStore(Path(folder), limit_gb=1e-3), 0
    while True:
        key = f"{number % 50:040x}"
        store.put(key, {"x": torch.full((20_000,), float(number % 50))})
        number += 1


def test_several_writers_and_a_kill_leave_whole_entries(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_for_ever, args=(str(tmp_path),), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    store, deadline = FeatureStore(tmp_path), time.monotonic() + 60
    while store.info().entries < 15 and time.monotonic() < deadline:
        time.sleep(0.2)
    for worker in workers:
        worker.kill()
        worker.join()
    assert store.info().entries >= 15
    for path in tmp_path.glob("??/*.safetensors"):
        found = store.get(path.stem)
        assert found is not None and (found["x"] == int(path.stem, 16)).all()


def test_a_view_is_always_the_same_pixels() -> None:
    config = AugmentConfig(rotate=20, noise=0.05)
    image, label = torch.rand(3, 3, 32, 32), torch.randint(0, 2, (3, 32, 32))
    kinds = {}
    for seed in range(12):
        pictures, labels = augment_views(image, label, torch.Generator().manual_seed(seed), config, 2)
        for row in range(3):
            kinds.setdefault(row, set()).add((pictures[row].numpy().tobytes(), labels[row].numpy().tobytes()))
    assert [len(found) for found in kinds.values()] == [2, 2, 2]


def test_command_line_counts_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path)
    for number in range(3):
        store.put(f"{number:040x}", {"x": torch.zeros(10)})
    assert main(["cache", "info", "--folder", str(tmp_path)]) == 0
    assert "entries      3" in capsys.readouterr().out
    assert main(["cache", "prune", "--gb", "0", "--folder", str(tmp_path)]) == 0
    assert "removed 3 entries" in capsys.readouterr().out
    assert store.info().entries == 0


def test_bad_limit() -> None:
    with pytest.raises(ConfigError, match="limit is 0 GB"):
        FeatureStore(limit_gb=0)
    with pytest.raises(ConfigError, match=r"augment.views is 65; expected 0 to 64"):
        AugmentConfig(views=65)
