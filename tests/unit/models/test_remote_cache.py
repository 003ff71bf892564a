"""What is kept of what was read over a network, and what works offline."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from plan_llama.models import remote_cache
from plan_llama.models.resolve import resolve_model
from tests.http_server import Site, status
from tests.unit.models.remote_helpers import REPO, TOKEN, gguf, refusal

pytestmark = pytest.mark.usefixtures("remote_home")


def test_the_cache(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.etag = '"one"'
    site.files["/a.gguf"] = gguf()
    url = f"{site.url}/a.gguf"
    first = resolve_model(url)
    again = resolve_model(url)
    assert len(site.asked) == 1
    assert (again.tensors, again.hparams, again.vocab_size) == (
        first.tensors,
        first.hparams,
        first.vocab_size,
    )
    assert "kept in the cache" in (again.origin_note or "")
    monkeypatch.setattr(remote_cache, "FRESH_S", -1.0)
    assert resolve_model(url).tensors == first.tensors
    assert site.asked[-1].if_none_match == '"one"'
    site.etag = '"two"'
    site.files["/a.gguf"] = gguf(50)
    assert resolve_model(url).vocab_size == 50
    site.answers["/a.gguf"] = status(503)
    old = resolve_model(url)
    assert old.vocab_size == 50
    assert "whether the file is still the same was not asked" in (old.origin_note or "")
    site.answers["/a.gguf"] = status(404)
    assert "HTTP 404" in refusal(url)


def test_the_listing_is_kept_for_an_hour(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model(f"hf:{REPO}:Q8_0")
    resolve_model(f"hf:{REPO}:Q8_0")
    assert len(site.asked) == 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    site.hub(REPO, {"Tiny-Q8_0.gguf": gguf(77)})
    assert resolve_model(f"hf:{REPO}:Q8_0").vocab_size == 77
    site.answers["/api/models/someone/Tiny-GGUF/tree/main"] = status(500)
    monkeypatch.setattr(time, "time", lambda: now + 9000)
    spec = resolve_model(f"hf:{REPO}:Q8_0")
    assert "did not answer" in (spec.origin_note or "")


def test_offline(site: Site, monkeypatch: pytest.MonkeyPatch, remote_home: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline (HF_HUB_OFFLINE), and it was not looked at before" in refusal(f"hf:{REPO}:Q8_0")
    assert "its header was not read before" in refusal(f"{site.url}/a.gguf")
    assert site.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    online = resolve_model(f"hf:{REPO}:Q8_0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "TRUE")
    site.asked.clear()
    spec = resolve_model(f"hf:{REPO}:Q8_0")
    assert site.asked == []
    assert spec.tensors == online.tensors
    assert "(offline)" in (spec.origin_note or "")


def test_offline_with_the_file_here(site: Site, monkeypatch: pytest.MonkeyPatch, remote_home: Path) -> None:
    folder = remote_home / "models" / REPO
    folder.mkdir(parents=True)
    (folder / "Tiny-Q8_0.gguf").write_bytes(gguf())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model(f"hf:{REPO}:Q8_0").present


def test_a_file_that_is_here_is_not_read_there(site: Site, remote_home: Path) -> None:
    folder = remote_home / "models" / REPO
    folder.mkdir(parents=True)
    (folder / "Tiny-Q8_0.gguf").write_bytes(gguf())
    spec = resolve_model(f"hf:{REPO}:Q8_0")
    assert spec.present
    assert spec.download is None
    assert len(site.asked) == 1
    (folder / "Tiny-Q8_0.gguf").write_bytes(gguf()[:-100])
    spec = resolve_model(f"hf:{REPO}:Q8_0")
    assert not spec.present
    assert spec.download


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 100_000, b'{"format": 1, "key": "x", "value": 1}'])
def test_a_damaged_cache_is_asked_again(site: Site, tmp_path: Path, damage: bytes) -> None:
    first = resolve_model(f"hf:{REPO}:Q8_0")
    kept = list((tmp_path / "cache" / "remote").iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(damage)
    assert resolve_model(f"hf:{REPO}:Q8_0").tensors == first.tensors
    assert len(site.asked) == 4


def test_damage_inside_a_kept_header(site: Site, tmp_path: Path) -> None:
    first = resolve_model(f"hf:{REPO}:Q8_0")
    for path in (tmp_path / "cache" / "remote").glob("header-*"):
        entry = json.loads(path.read_text())
        entry["value"]["header"]["tensors"][0][1] = 9999
        path.write_text(json.dumps(entry))
    assert resolve_model(f"hf:{REPO}:Q8_0").tensors == first.tensors
    assert len(site.asked) == 3


def test_the_cache_folder_cannot_be_written(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(blocked))
    assert resolve_model(f"hf:{REPO}:Q8_0").quant == "Q8_0"


def test_nothing_secret_is_kept(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    site.files["/a.gguf"] = gguf()
    resolve_model(f"{site.url}/a.gguf?signature=secret")
    resolve_model(f"hf:{REPO}:Q8_0")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept
    assert TOKEN.encode() not in kept
    assert b"secret" not in kept


def test_old_entries_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote_cache, "_MOST_ENTRIES", 8)
    for number in range(20):
        remote_cache.put("header", str(number), number)
    assert len(list((tmp_path / "cache" / "remote").iterdir())) <= 8
    last = remote_cache.get("header", "19")
    assert last
    assert last.value == 19
