"""The examples run as they are told to, and their results are right."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from oracles import dense_wan
from oracles.dense_wan import CFG, weights


def test_replay_wan_is_the_dense_rollout(project: Path, tmp_path: Path) -> None:
    held, timesteps = weights(seed=9), [1000.0, 937.5, 2500 / 3, 625.0]
    tensors = {
        "context": torch.randn(4, CFG["text_dim"]),
        "noise": torch.randn(2, 9, 4, 4, 6),
        "renoise": torch.randn(3, 3, 2, 3, 4, 4, 6),
        "timesteps": torch.tensor(timesteps),
    }
    recorded = tmp_path / "in.safetensors"
    save_file({**tensors, **{f"w:{name}": value for name, value in held.items()}}, recorded, {"cfg": repr(CFG)})
    example, output = project / "examples" / "replay_wan.py", tmp_path / "out.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(example), str(recorded), "-o", str(output), "--window", "6"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = load_file(output)
    assert set(found) == {"latents"}
    expected = dense_wan.roll(
        held, CFG, tensors["noise"], tensors["renoise"], tensors["context"], tensors["timesteps"].tolist(), 5.0, 6
    )
    torch.testing.assert_close(found["latents"].double(), expected, rtol=1e-5, atol=1e-5)


def test_replay_wan_says_what_is_missing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"noise": torch.zeros(1)}, tmp_path / "in.safetensors")
    monkeypatch.setattr(
        sys, "argv", ["replay", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(project / "examples" / "replay_wan.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "'context', 'renoise', 'timesteps', 'cfg in its metadata'" in said
    assert not (tmp_path / "out.safetensors").exists()
