"""What a merge of two adapters costs on each domain: ``python -m tests.benchmarks.merging``.

Per pair of domains and seed one adapter is trained on each, from the same start, with the same budget. Rows: the
domain's own adapter, the other's, merges of the two (``samgraft merge``), one adapter trained on both, and the router,
which takes for every picture the adapter whose training pictures are nearest by frozen features. Scores are of pictures
that no adapter was trained on; "cost" is the own adapter's score minus the row's.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.bundle import BundleMeta, load_bundle, save_bundle
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.recipes.continual.merging import merge_adapters
from samgraft.recipes.continual.router import nearest
from samgraft.recipes.features import FeatureMoments, domain_features, pooled
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.sampled import spread
from tests.benchmarks._arms import decoder_config, graft_arm
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import Case, cases
from tests.benchmarks._graft_rows import METRIC, spec_of
from tests.benchmarks._sets import SetSpec, evaluate, staining, tensors
from tests.benchmarks._table import is_there, markdown, read_json, write_json
from tests.benchmarks._train import loop

PAIRS = {
    "nuclei": ("nuclei:dark", "nuclei:bright"),
    "cardiac_retina": ("cardiac_mr", "retina_vessels"),
}
"""Fluorescence (dark) and stained (bright) nuclei; two things that have nothing in common."""
MERGES: dict[str, dict[str, Any]] = {
    "average": {"how": "average"},
    "exact": {"how": "exact"},
    "svd": {"how": "svd"},
    "svd, rank 2": {"how": "svd", "rank": 2},
    "arithmetic 0.7 + 0.7": {"how": "exact", "weights": (0.7, 0.7)},
    "arithmetic 1 + 1": {"how": "exact", "weights": (1.0, 1.0)},
}
RANK = 4
INPUTS = 8
"""Inputs per picture that the router looks at."""
KEY = ("pair", "seed", "budget", "row")


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """One side of a pair."""

    name: str
    spec: SetSpec
    train: list[Case]
    scored: list[Case]
    metric: str


def domain(name: str, limit: int | None) -> Domain:
    """Cases of a set, or of one staining of nuclei; without any in the val split every fifth of training is scored."""
    base, _, kind = name.partition(":")
    spec = replace(spec_of(base), full_resolution=True)  # a pair has to have the same decoder
    train, scored = cases(base, "train"), cases(base, "val")
    if kind:
        train, scored = ([case for case in some if staining(case) == kind] for some in (train, scored))
    if not scored:
        scored, train = train[::5], [case for index, case in enumerate(train) if index % 5]
    return Domain(name=name, spec=spec, train=train, scored=scored[:limit], metric=METRIC[base])


def network(backbone: HFSamBackbone, spec: SetSpec, seed: int) -> Grafted:
    """LoRA and class tokens, from a start that the seed decides."""
    torch.manual_seed(seed)
    return attach(backbone, LoraConfig(rank=RANK), decoder=decoder_config(spec))


def train(grafted: Grafted, domains: Sequence[Domain], budget: float, seed: int) -> int:
    """Train for ``budget`` process seconds; steps taken.

    Several domains share the batches evenly; augmentation and loss are those of the first.
    """
    arm = graft_arm(grafted, full=False, batch=4)
    arm.module.train()
    start = time.process_time()
    sets = [tensors(one.spec, one.train) for one in domains]
    most = max(len(images) for images, _ in sets)
    even = [torch.arange(most) % len(images) for images, _ in sets]
    images, labels = (torch.cat([one[part][index] for one, index in zip(sets, even, strict=True)]) for part in (0, 1))
    spec, options = domains[0].spec, arm.options
    found = loop(
        arm.forward, arm.trained, spec, (images, labels), options, start=start, deadline=start + budget, seed=seed
    )
    grafted.eval()
    return int(found["steps"])


def score(grafted: Grafted, one: Domain, scored: Sequence[Case] | None = None) -> float:
    """The domain's figure on pictures nobody was trained on."""
    forward = graft_arm(grafted, full=False, batch=4).forward
    found = evaluate(forward, one.spec, one.scored if scored is None else scored, three=False)
    return float(found[one.metric])


def inputs(one: Domain, case: Case, count: int = INPUTS) -> Tensor:
    """A few network inputs (n, 3, S, S) of a case, spread over it."""
    images, _ = tensors(one.spec, [case])
    return images[sorted(spread(len(images), count))]


def save(path: Path, grafted: Grafted, one: Domain) -> Path:
    """A bundle with a header."""
    recipe = asdict(InputRecipe(size=one.spec.size, window=one.spec.window))
    names = dict(enumerate((f"{one.name} {k}" for k in range(1, one.spec.classes)), start=1))
    return save_bundle(path, grafted, meta=BundleMeta(classes=names, extra={"input": recipe}))


def routed(
    domains: Sequence[Domain], moments: Mapping[str, FeatureMoments], backbone: HFSamBackbone, files: Sequence[Path]
) -> dict[str, Any]:
    """Scores where every picture is segmented by the adapter that the router takes, and how often that is its own.

    Figures that pool objects over pictures cannot be averaged, so the pictures of a domain are scored together with its
    own adapter if all of them are routed there, and otherwise reported as missing.
    """
    own: dict[str, float] = {}
    scores: dict[str, float] = {}
    for number, one in enumerate(domains):
        names = []
        for case in one.scored:
            feature = pooled(backbone, inputs(one, case)).mean(axis=0)
            names.append(nearest({k: m.distance(feature) / m.threshold for k, m in moments.items()}).name)
        own[one.name] = float(np.mean([name == one.name for name in names]))
        right = [case for case, name in zip(one.scored, names, strict=True) if name == one.name]
        if right:
            grafted = load_bundle(files[number], backbone)
            scores[one.name] = score(grafted, one, right)
            grafted.detach()
    return {"scores": scores, "routed_right": own}


def run_pair(pair: str, seed: int, budget: float, backbone: str, limit: int | None) -> list[dict[str, Any]]:
    """All rows of a pair and a seed."""
    base = open_backbone(backbone)
    domains = [domain(name, limit) for name in PAIRS[pair]]
    rows: list[dict[str, Any]] = []

    def add(row: str, scores: Mapping[str, float], **more: Any) -> None:
        rows.append({"pair": pair, "seed": seed, "budget": budget, "row": row, "scores": dict(scores), **more})
        print(f"{pair} seed {seed} {row}: {scores}", flush=True)

    def scored(grafted: Grafted) -> dict[str, float]:
        return {one.name: score(grafted, one) for one in domains}

    with TemporaryDirectory() as folder:
        files, moments = [], {}
        for one in domains:
            grafted = network(base, one.spec, seed)
            steps = train(grafted, [one], budget, seed)
            chosen = [one.train[index] for index in sorted(spread(len(one.train), 32))]
            moments[one.name] = domain_features(grafted, [inputs(one, case) for case in chosen])
            files.append(save(Path(folder) / f"{len(files)}.graft", grafted, one))
            add(f"adapter of {one.name}", scored(grafted), steps=steps)
            grafted.detach()
        for name, options in MERGES.items():
            report = merge_adapters(files, Path(folder) / "m.graft", like=files[0], backbone=base, **options)
            grafted = load_bundle(report.adapter, base)
            add(name, scored(grafted), parameters=report.parameters, discarded=dict(report.discarded))
            grafted.detach()
        add("router", **routed(domains, moments, base, files))
        grafted = network(base, domains[0].spec, seed)
        steps = train(grafted, domains, 2 * budget, seed)
        add("one adapter trained on both, twice the budget", scored(grafted), steps=steps)
        grafted.detach()
    return rows


def table(rows: Sequence[Mapping[str, Any]], pair: str) -> str:
    """Means over seeds: score and cost on each domain."""
    names = PAIRS[pair]
    own = {name: _mean(rows, pair, f"adapter of {name}", _score(name)) for name in names}
    lines = []
    for row in dict.fromkeys(str(one["row"]) for one in rows if one["pair"] == pair):
        line: dict[str, Any] = {"row": row}
        for name in names:
            line[name] = _mean(rows, pair, row, _score(name))
            line[f"cost {name}"] = own[name] - line[name]
        right = _mean(rows, pair, row, lambda one: float(np.mean(list(one.get("routed_right", {"": np.nan}).values()))))
        lines.append(line | {"routed right": right})
    return markdown(lines)


def _score(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda one: float(one["scores"].get(name, float("nan")))


def _mean(rows: Sequence[Mapping[str, Any]], pair: str, row: str, value: Callable[[Mapping[str, Any]], float]) -> float:
    found = [value(one) for one in rows if one["pair"] == pair and one["row"] == row]
    return float(np.mean(found)) if found else float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write JSON, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.merging", description=__doc__)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=60, help="process seconds of training per adapter")
    parser.add_argument("--backbone", default="graft-tiny")
    parser.add_argument("--limit", type=int, help="most scored pictures per domain")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/merging.json"))
    parser.add_argument("--summary", action="store_true", help="only print the tables of what is there")
    options = parser.parse_args(arguments)
    content = read_json(options.json)
    rows: list[dict[str, Any]] = content.setdefault("rows", [])
    for pair in options.pairs if not options.summary else ():
        for seed in options.seeds:
            last = {"pair": pair, "seed": seed, "budget": options.budget, "row": "router"}
            if is_there(last, rows, KEY):
                continue
            rows += run_pair(pair, seed, options.budget, options.backbone, options.limit)
            write_json(options.json, content)
    for pair in options.pairs:
        print(f"\n{pair}\n\n{table(rows, pair)}")


if __name__ == "__main__":
    main()
