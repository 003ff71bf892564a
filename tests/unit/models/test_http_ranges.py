"""Reading headers over HTTP: ranges and none, redirects, refusals, lies, drips. The server is the test's own."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from plan_llama.errors import ModelError, PlanLlamaError, RemoteError, UsageError
from plan_llama.models import http_ranges, http_transport, hub
from plan_llama.models.gguf import read_header
from plan_llama.models.http_ranges import RemoteFile
from plan_llama.models.http_transport import Deadline
from plan_llama.models.resolve import resolve_model
from tests.http_server import Site, dripping, partial, serving, status
from tests.unit.models.remote_helpers import REPO, gguf, refusal, same, split_model

pytestmark = pytest.mark.usefixtures("remote_home")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("{url}/loop", "more than 5 redirects"),
        ("file:///etc/passwd", "redirected to no usable URL"),
        ("ftp://example.org/x", "redirected to no usable URL"),
        ("", "redirected to no usable URL"),
        ("http://[oops/x", "redirected to no usable URL"),
        ("http://name:word@example.org/x", "redirected to no usable URL"),
    ],
)
def test_redirects_that_are_not_followed(site: Site, location: str, said: str) -> None:
    target = status(302, {"Location": location.format(url=site.url)}, b"x" * 50_000)
    site.answers["/loop"] = site.answers["/a.gguf"] = target
    line = refusal(f"{site.url}/a.gguf")
    assert said in line
    assert "word@" not in line
    assert len(site.asked) <= 6


def test_no_redirect_to_an_unencrypted_server() -> None:
    with pytest.raises(RemoteError, match="unencrypted"):
        http_transport._redirected("https://hub.example/x", "http://hub.example/x", "x")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (401, "wants a login (HTTP 401)"),
        (403, "refuses access (HTTP 403); check the link: signed ones expire"),
        (404, "no such file (HTTP 404); check the URL"),
        (416, "the file is empty"),
        (429, "too many requests (HTTP 429); try again later"),
        (500, "the server has a problem (HTTP 500)"),
    ],
)
def test_refusals_of_other_servers(site: Site, code: int, said: str) -> None:
    site.answers["/a.gguf"] = status(code)
    line = refusal(f"{site.url}/a.gguf?signature=secret")
    assert said in line
    assert "secret" not in line


def test_a_split_model_behind_a_link(site: Site, tmp_path: Path) -> None:
    files = split_model(tmp_path)
    site.files.update({f"/dir/{name}": data for name, data in files.items()})
    spec = resolve_model(f"{site.url}/dir/Tiny-Q8_0-00002-of-00003.gguf?sig=1")
    assert len(spec.tensors) == 3
    assert spec.download
    assert spec.download.argv[:3] == ("curl", "-fL", "--create-dirs")
    assert spec.download.argv[-3:] == tuple(f"{site.url}/dir/{name}?sig=1" for name in files)
    assert (spec.path or "").endswith("Tiny-Q8_0-00001-of-00003.gguf")
    del site.files["/dir/Tiny-Q8_0-00003-of-00003.gguf"]
    assert "no such file (HTTP 404)" in refusal(f"{site.url}/dir/Tiny-Q8_0-00001-of-00003.gguf?sig=2")
    line = refusal(f"{site.url}/dir/Tiny-00001-of-99999.gguf")
    assert "claims 99,999 parts" in line


def test_growing_ranges(site: Site) -> None:
    data = gguf(400_000)  # some 7 MB of header
    site.files["/large.gguf"] = data
    spec = resolve_model(f"{site.url}/large.gguf")
    assert same(spec, data)
    assert spec.vocab_size == 400_000
    starts = [int((asked.range or "").removeprefix("bytes=").partition("-")[0]) for asked in site.asked]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert spec.origin_note
    assert "MB of" in spec.origin_note


def test_no_ranges(site: Site) -> None:
    site.ranges = False
    data = gguf(150_000)
    site.files["/large.gguf"] = data
    assert same(resolve_model(f"{site.url}/large.gguf"), data)
    assert len(site.asked) == 1


def test_no_ranges_and_a_large_header(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_ranges, "MAX_WITHOUT_RANGES", 1 << 20)
    site.ranges = False
    site.files["/large.gguf"] = gguf(150_000)
    assert "takes no range requests, and the header does not end within the first 1 MiB" in refusal(
        f"{site.url}/large.gguf"
    )


def test_a_header_that_does_not_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_ranges, "MAX_HEADER_BYTES", 3 << 20)
    site.files["/large.gguf"] = gguf(400_000)
    line = refusal(f"{site.url}/large.gguf")
    assert "its header does not end within 3 MiB" in line


HEAD = gguf()


@pytest.mark.parametrize(
    ("content_range", "said"),
    [
        ("bytes 0-99/1152921504606846976000", "with 'bytes 0-99/1152921504606846976000'"),
        ("bytes 5-99/5696", "expected 'bytes 0-…/SIZE'"),
        ("bytes 0-9999/5696", "expected 'bytes 0-…/SIZE'"),
        ("bytes 0-99/*", "expected 'bytes 0-…/SIZE'"),
        ("", "with ''"),
        ("pages 1-2/3", "with 'pages 1-2/3'"),
    ],
)
def test_lies_about_the_range(site: Site, content_range: str, said: str) -> None:
    site.answers["/a.gguf"] = partial(content_range, HEAD)
    assert said in refusal(f"{site.url}/a.gguf")


def test_lies_about_the_size(site: Site) -> None:
    site.answers["/a.gguf"] = partial(f"bytes 0-{len(HEAD) - 1}/{1 << 59}", HEAD)
    assert "answers the range from 5,696" in refusal(f"{site.url}/a.gguf")
    site.hub(REPO, {"Tiny-Q8_0.gguf": gguf()}, sizes={"Tiny-Q8_0.gguf": 12_345})
    hub.forget(REPO)
    assert "has 5,696 bytes, and the listing says 12,345; the repository is changing" in refusal(
        f"hf:{REPO}:Q8_0"
    )


def test_a_file_that_is_shorter_than_its_tensors(site: Site) -> None:
    site.files["/a.gguf"] = gguf()[:-64]
    spec = resolve_model(f"{site.url}/a.gguf")
    assert spec.data_note
    assert "is short" in spec.data_note


@pytest.mark.parametrize("cut", [0, 3, 100, 900])
def test_cut_bodies(site: Site, cut: int) -> None:
    site.answers["/a.gguf"] = partial(f"bytes 0-{len(HEAD) - 1}/{len(HEAD)}", HEAD[:cut], length=len(HEAD))
    started = time.monotonic()
    line = refusal(f"{site.url}/a.gguf")
    assert time.monotonic() - started < 2
    assert "the connection ended" in line or "answers the range from" in line


def test_a_cut_that_heals(site: Site) -> None:
    """A server may give less than it was asked for; the rest is asked for again."""
    data = gguf(2_000)
    site.answers["/a.gguf"] = lambda handler: (
        site.answers.pop("/a.gguf"),
        partial(f"bytes 0-999/{len(data)}", data[:1000])(handler),
    )[1]
    site.files["/a.gguf"] = data
    assert same(resolve_model(f"{site.url}/a.gguf"), data)
    assert [(asked.range or "").partition("-")[0] for asked in site.asked] == ["bytes=0", "bytes=1000"]


def test_a_cut_body_without_ranges(site: Site) -> None:
    site.answers["/a.gguf"] = dripping(
        [], 0, head=b"HTTP/1.0 200 OK\r\nContent-Length: 5696\r\n\r\n" + HEAD[:100]
    )
    assert "the connection ended after 100 of 5,696 bytes" in refusal(f"{site.url}/a.gguf")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + HEAD,
        b"HTTP/1.0 200 OK\r\nContent-Length: -5\r\n\r\n" + HEAD,
        b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n" + HEAD,
        b"HTTP/1.0 200 OK\r\nContent-Length: 20\r\n\r\n" + HEAD,
        b"HTTP/1.0 206 OK\r\nContent-Encoding: gzip\r\nContent-Range: bytes 0-9/10\r\n\r\n",
        b"HTTP/1.1 206 OK\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes 0-5695/5696\r\n\r\nFFFFFFFFFFFF\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.0 200 OK\r\n" + b"X: " + b"y" * 70_000,
        b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 200,
        b"",
    ],
)
def test_odd_answers(site: Site, head: bytes) -> None:
    site.answers["/a.gguf"] = dripping([], 0, head=head)
    started = time.monotonic()
    refusal(f"{site.url}/a.gguf")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("place", ["status line", "headers", "body", "error", "listing"])
def test_a_server_that_drips(site: Site, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(http_transport, "TOTAL_S", 0.15)
    heads = {
        "status line": b"",
        "headers": b"HTTP/1.0 206 Partial\r\nX: ",
        "body": b"HTTP/1.0 206 P\r\nContent-Range: bytes 0-5695/5696\r\nContent-Length: 5696\r\n\r\nGGUF",
        "error": b"HTTP/1.0 404 N\r\nX: ",
        "listing": b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n[",
    }
    slow = dripping([b" "] * 200, 0.03, head=heads[place])
    site.answers["/a.gguf"] = site.answers["/api/models/someone/Tiny-GGUF/tree/main"] = slow
    started = time.monotonic()
    line = refusal(f"hf:{REPO}:Q8_0" if place == "listing" else f"{site.url}/a.gguf")
    assert time.monotonic() - started < 2
    assert "the server is too slow, not done after 0.15 s" in line


def test_a_server_that_says_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "QUIET_S", 0.1)
    site.answers["/a.gguf"] = dripping([b""] * 4, 0.1)
    assert "the server does not answer" in refusal(f"{site.url}/a.gguf")


def test_memory_stays_small(site: Site) -> None:
    """A body far longer than what was asked for is not read."""
    endless = b"x" * (1 << 20)
    site.answers["/a.gguf"] = dripping(
        [endless] * 100, 0, head=b"HTTP/1.0 206 P\r\nContent-Range: bytes 0-5695/5696\r\n\r\n" + HEAD
    )
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        spec = resolve_model(f"{site.url}/a.gguf")
        assert tracemalloc.get_traced_memory()[1] - before < 20 << 20
    finally:
        tracemalloc.stop()
    assert same(spec, HEAD)


def test_a_file_that_changes_meanwhile(site: Site) -> None:
    data = gguf(200_000)
    site.files["/a.gguf"] = data
    file = RemoteFile(f"{site.url}/a.gguf", name="a.gguf", deadline=Deadline(5), first_bytes=1000)
    site.files["/a.gguf"] = data + b"more"
    with pytest.raises(RemoteError, match="changed while it was read"):
        read_header(file.read_at, file.size, "a.gguf", window=4096)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("https://example.org/page.html", UsageError),
        ("https://name:password@example.org/a.gguf", ModelError),
        ("https:///a.gguf", ModelError),
        ("http://[oops/a.gguf", ModelError),
        ("https://example.org:99999/a.gguf", ModelError),
    ],
)
def test_links_that_are_none(text: str, error: type[PlanLlamaError]) -> None:
    with pytest.raises(error) as caught:
        resolve_model(text)
    assert "password" not in caught.value.line().replace("a name or password", "")


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        url = gone.url
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert "cannot be reached" in refusal(f"hf:{REPO}:Q8_0")


def test_a_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        proxy.files["http://models.invalid/a.gguf"] = gguf()
        monkeypatch.setenv("http_proxy", proxy.url)
        assert same(resolve_model("http://models.invalid/a.gguf"), gguf())
        assert proxy.asked[0].path == "http://models.invalid/a.gguf"


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        line = refusal("https://models.invalid/a.gguf")
        assert "cannot be reached (Tunnel connection failed: 501" in line
