from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama import catalog
from tests.unit.hardware.support import GPU_TABLE


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache and profiles, or sees this machine's choice of cards."""
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAN_LLAMA_PROFILES", str(tmp_path / "user-profiles"))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Profiles with a dozen cards, so that the shipped table can change without these tests."""
    root = tmp_path / "profiles"
    (root / "gpus").mkdir(parents=True)
    (root / "hardware").mkdir()
    (root / "gpus" / "cards.toml").write_text(GPU_TABLE)
    monkeypatch.setattr(catalog, "root", lambda: root)
    return root
