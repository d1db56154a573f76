"""The script for a GPU runs to its end where there is none, so that time on a GPU is not lost to a slip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"


@pytest.mark.skipif(not MNIST.is_dir(), reason="real MNIST: no folder shared/data/mnist")
def test_every_part_leaves_its_figures(tmp_path):
    script, flags = ROOT / "benchmarks" / "gpu.py", ["--device", "cpu", "--quick", "--data", MNIST, "--out", "gpu.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {(row["part"], row["way"]) for row in result["rows"]} == {
        (part, way) for part in ("sampling", "training step") for way in ("plain", "partition")
    }
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert result["training"]["code"] == 0
    assert result["training"]["last"][-1]["validation_loss"] > 0
