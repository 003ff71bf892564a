"""Other revisions of a repository than main, and the links that people copy from the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.models import hub
from plan_llama.models.resolve import choices, resolve_model, spelled
from tests.http_server import Site
from tests.unit.models.remote_helpers import gguf, refusal, same

REPO = "someone/Tiny-GGUF"
OLD = gguf(block_count=1)
COMMIT = "38bb39ee97821de2c9009abb7e93950eec396e66"


@pytest.mark.parametrize(
    ("revision", "sent"),
    [("v1.0", "v1.0"), (COMMIT, COMMIT), ("refs/pr/3", "refs%2Fpr%2F3"), ("refs%2Fpr%2F3", "refs%2Fpr%2F3")],
)
def test_a_revision_is_read_and_downloaded(site: Site, revision: str, sent: str) -> None:
    site.hub(REPO, {"Tiny-Q8_0.gguf": gguf()})
    site.hub(REPO, {"Tiny-Q8_0.gguf": OLD, "Tiny-Q4_0.gguf": OLD}, revision=sent)
    spec = resolve_model(f"hf:{REPO}@{revision}:Q8_0")
    assert same(spec, OLD)
    plain = revision.replace("%2F", "/")
    assert spec.download is not None
    assert spec.download.argv[:5] == ("hf", "download", REPO, "--revision", plain)
    folder = Path.home() / "models" / f"{REPO}@{plain.replace('/', '-')}"
    assert spec.download.path == str(folder / "Tiny-Q8_0.gguf")
    assert [item.quant for item in choices(f"hf:{REPO}@{revision}")] == ["Q8_0", "Q4_0"]
    assert same(resolve_model(f"hf:{REPO}@{revision}/Tiny-Q4_0.gguf"), OLD)
    assert [item.quant for item in choices(f"hf:{REPO}")] == ["Q8_0"]  # main is kept apart


def test_a_file_of_main_does_not_stand_for_another_revision(site: Site) -> None:
    site.hub(REPO, {"Tiny-Q8_0.gguf": gguf()})
    site.hub(REPO, {"Tiny-Q8_0.gguf": OLD}, revision="old")
    main = Path.home() / "models" / REPO
    main.mkdir(parents=True)
    (main / "Tiny-Q8_0.gguf").write_bytes(gguf())
    assert resolve_model(f"hf:{REPO}:Q8_0").present
    assert not resolve_model(f"hf:{REPO}@old:Q8_0").present
    other = main.with_name("Tiny-GGUF@old")
    other.mkdir()
    (other / "Tiny-Q8_0.gguf").write_bytes(OLD)
    found = resolve_model(f"hf:{REPO}@old:Q8_0")
    assert found.present
    assert found.path == str(other / "Tiny-Q8_0.gguf")


def test_a_revision_that_is_not_there(site: Site) -> None:
    site.hub(REPO, {"Tiny-Q8_0.gguf": gguf()})
    assert f"{REPO}@gone on 127.0.0.1" in refusal(f"hf:{REPO}@gone")
    for wrong in ("@", "@a b", "@../x", "@-x"):
        assert "not a repository; expected hf:OWNER/REPO" in refusal(f"hf:{REPO}{wrong}")


# Forms of links that the hub's pages show, and of names that other programs take.
@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("/blob/main/Q8_0/Tiny-Q8_0-00001-of-00002.gguf", "/Q8_0/Tiny-Q8_0-00001-of-00002.gguf"),
        ("/resolve/main/Tiny-Q8_0.gguf?download=true", "/Tiny-Q8_0.gguf"),
        (f"/resolve/{COMMIT}/Tiny-Q8_0.gguf", f"@{COMMIT}/Tiny-Q8_0.gguf"),
        ("/blob/refs%2Fpr%2F3/Tiny-Q8_0.gguf", "@refs/pr/3/Tiny-Q8_0.gguf"),
        ("/tree/main", ""),
        ("/tree/v1.0", "@v1.0"),
        ("/tree/main/UD-IQ2_M", ":UD-IQ2_M"),
        ("", ""),
        ("/", ""),
    ],
)
@pytest.mark.parametrize("start", ["https://huggingface.co/", "huggingface.co/"])
def test_links_of_the_hub(link: str, name: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    found = spelled(f"{start}{REPO}{link}")
    assert found == f"hf:{REPO}{name}"
    hub.parse(found)


def test_names_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert spelled(f"hf.co/{REPO}:Q8_0") == f"hf:{REPO}:Q8_0"
    assert hub.parse(f"hf://{REPO}@v1/a.gguf") == hub.HubName(repo=REPO, file="a.gguf", revision="v1")
    for other in (
        "https://example.org/a/b",
        "https://huggingface.co/datasets/a/b",
        "/models/x.gguf",
        "phi-4",
    ):
        assert spelled(other) == other


def test_a_repository_that_was_not_called_one() -> None:
    assert "hf:someone/Tiny-GGUF:Q8_0 looks on the hub" in refusal("someone/Tiny-GGUF:Q8_0")
