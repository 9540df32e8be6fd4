"""The commands of docs/clinical_formats.md, run as they stand there on the patient they were written for."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import samgraft
from samgraft.recipes import cli

pytestmark = pytest.mark.medical


def test_every_command_of_the_page_runs(
    shared_data: Path,
    repo_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("highdicom")
    patient = shared_data / "medical" / "sarcoma_dicom" / "STS_019" / "CT"
    (tmp_path / "ct").symlink_to(patient / "image")
    (tmp_path / "RS.dcm").symlink_to(patient / "mask" / "RS.dcm")
    (tmp_path / "data_set").symlink_to(shared_data / "medical" / "nerve_us")
    monkeypatch.chdir(tmp_path)
    text = (repo_root / "docs" / "clinical_formats.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "samgraft" and cli.main(words[1:]) == 0, line
        print(f"<- {line}")
    out = capsys.readouterr().out
    gtv, seg, old = (samgraft.open(name) for name in ("gtv.dcm", "seg.dcm", "old.dcm"))
    assert gtv.grid.shape == seg.grid.shape == old.grid.shape == samgraft.open("ct").grid.shape
    assert np.array_equal(gtv.read_labels(), old.read_labels()), "contours, NIfTI and back"
    assert "47 files examined: 0 errors" in out and '"healthy": true' in out
    print(out)
