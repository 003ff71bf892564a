"""`hf:` names: what a repository offers, which quant is meant, where the token goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from plan_llama.models import hub
from plan_llama.models.http_transport import Deadline
from plan_llama.models.resolve import choices, resolve_model
from tests.http_server import Site, serving, status
from tests.unit.models.remote_helpers import KEPT, REPO, TOKEN, gguf, refusal, same, split_model

pytestmark = pytest.mark.usefixtures("remote_home")


def test_a_quant_of_a_repository(site: Site, remote_home: Path) -> None:
    spec = resolve_model(f"hf:{REPO}:q8_0")
    assert same(spec, gguf())
    folder = str(remote_home / "models" / REPO)
    assert spec.download
    assert spec.download.argv == (
        *("hf", "download", REPO, "--include", "Tiny-Q8_0.gguf"),
        *("--local-dir", folder),
    )
    assert spec.path == spec.download.path == f"{folder}/Tiny-Q8_0.gguf"
    assert spec.download.size_bytes == len(gguf())
    assert spec.origin_note
    assert site.url in spec.origin_note
    assert [asked.range for asked in site.asked] == [None, "bytes=0-2097151"]


def test_the_token_goes_to_the_hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\n")
    resolve_model(f"hf:{REPO}:Q8_0")
    assert {asked.authorization for asked in site.asked} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("folder", ["HF_HOME", "HF_TOKEN_PATH", ""])
def test_the_token_of_a_login(
    site: Site, remote_home: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    path = (
        remote_home / ".cache" / "huggingface" / "token"
        if not folder
        else remote_home / "elsewhere" / "token"
    )
    path.parent.mkdir(parents=True)
    path.write_text(TOKEN)
    if folder:
        monkeypatch.setenv(folder, str(path if folder == "HF_TOKEN_PATH" else path.parent))
    resolve_model(f"hf:{REPO}:Q8_0")
    assert site.asked[0].authorization == f"Bearer {TOKEN}"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    hub.forget(REPO)
    resolve_model(f"hf:{REPO}:Q8_0")
    assert site.asked[-1].authorization is None


def test_a_token_that_only_the_library_knows(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("huggingface_hub")
    library.get_token = lambda: TOKEN  # type: ignore[attr-defined]  # all that is used of it
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    resolve_model(f"hf:{REPO}:Q8_0")
    assert site.asked[0].authorization == f"Bearer {TOKEN}"


def test_the_token_goes_nowhere_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as other:
        other.files["/cdn/file"] = gguf()
        site.answers[KEPT] = status(302, {"Location": f"{other.url}/cdn/file?sig=1"})
        assert same(resolve_model(f"hf:{REPO}:Q8_0"), gguf())
        assert [asked.authorization for asked in other.asked] == [None]
        assert other.asked[0].range == "bytes=0-2097151"
        other.asked.clear()
        other.files["/own.gguf"] = gguf()
        resolve_model(f"{other.url}/own.gguf")
        assert [asked.authorization for asked in other.asked] == [None]


def test_the_token_stays_after_a_redirect_at_home(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    site.files["/renamed"] = gguf()
    site.answers[KEPT] = status(307, {"Location": "/renamed"})
    resolve_model(f"hf:{REPO}:Q8_0")
    assert site.asked[-1].path == "/renamed"
    assert site.asked[-1].authorization == f"Bearer {TOKEN}"


def test_a_token_that_would_break_a_header(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\r\nX-More: 1")
    assert "token holds blanks or control characters" in refusal(f"hf:{REPO}:Q8_0")
    assert site.asked == []


@pytest.mark.parametrize(
    ("code", "headers", "token", "said"),
    [
        (
            401,
            {},
            "",
            "there is no such repository, or it is private (HTTP 401); check the name; for a private",
        ),
        (401, {}, TOKEN, "the token was refused (HTTP 401)"),
        (
            401,
            {"X-Error-Code": "GatedRepo"},
            "",
            "gated: its owner wants an agreement first (HTTP 401); accept it",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, TOKEN, "someone/Tiny-GGUF, then try again"),
        (404, {}, TOKEN, "there is no such repository or file (HTTP 404); check the name"),
        (
            429,
            {"Retry-After": "120"},
            "",
            "too many requests (HTTP 429); try again in 120 s; the limit is higher",
        ),
        (429, {"Retry-After": "soon"}, TOKEN, "too many requests (HTTP 429); try again later"),
        (503, {}, "", "the server has a problem (HTTP 503); try again later"),
        (418, {}, "", "the server refuses the request (HTTP 418)"),
    ],
)
@pytest.mark.parametrize("path", ["/api/models/someone/Tiny-GGUF/tree/main", KEPT])
def test_refusals_of_the_hub(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    headers: dict[str, str],
    token: str,
    said: str,
    path: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    site.answers[path] = status(code, headers, b"x" * 100_000)
    assert said in refusal(f"hf:{REPO}:Q8_0")


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (b"<html>", "not a listing of files"),
        (b'{"error": "x"}', "not a listing of files"),
        (b'[{"type": "file", "path": 3, "size": 1}]', "not a listing of files"),
        (b'[{"type": "file", "path": "x.gguf", "size": -1}]', "not a listing of files"),
        (b"[" * 100_000, "not a listing of files"),
        (b"[]", "holds no GGUF of a model"),
        (b'[{"type": "file", "path": "../x-Q8_0.gguf", "size": 9}]', "holds no GGUF of a model"),
        (b'[{"type": "file", "path": "mmproj-F16.gguf", "size": 9}]', "holds no GGUF of a model"),
    ],
)
def test_odd_listings(site: Site, listing: bytes, said: str) -> None:
    site.files["/api/models/someone/Tiny-GGUF/tree/main"] = listing
    assert said in refusal(f"hf:{REPO}:Q8_0")


def test_a_listing_of_several_pages(site: Site) -> None:
    path = "/api/models/someone/Tiny-GGUF/tree/main"
    second = site.files.pop(path)
    first = json.dumps([{"type": "file", "path": "a-Q2_K.gguf", "size": 7}]).encode()
    site.answers[f"{path}?recursive=1"] = status(
        200, {"Link": f'<{site.url}{path}?cursor=1>; rel="next"'}, first
    )
    site.files[path] = second
    assert [choice.quant for choice in choices(f"hf:{REPO}")] == ["Q8_0", "Q2_K"]
    hub.forget(REPO)
    site.answers[f"{path}?recursive=1"] = status(200, {"Link": '<http://127.0.0.2/x>; rel="next"'}, first)
    assert "goes on at another host" in refusal(f"hf:{REPO}:Q8_0")


FILES = {
    "UD-IQ2_M/Big-UD-IQ2_M-00001-of-00002.gguf": 20,
    "UD-IQ2_M/Big-UD-IQ2_M-00002-of-00002.gguf": 25,
    "Q8_0/Big-Q8_0-00001-of-00003.gguf": 50,
    "Q8_0/Big-Q8_0-00003-of-00003.gguf": 50,
    "BF16/big.gguf": 99,
    "Big-Q4_K_M.gguf": 30,
    "Big.i1-IQ1_S.gguf": 10,
    "imatrix_unsloth.gguf": 5,
    "mmproj-BF16.gguf": 3,
    "mtp-Big-Q4_K_M.gguf": 4,
    "config.json": 1,
}


def offered(site: Site) -> hub.Repository:
    rows = [{"type": "file", "path": path, "oid": "1", "size": size} for path, size in FILES.items()]
    site.files["/api/models/someone/Big/tree/main"] = json.dumps(rows).encode()
    return hub.repository("someone/Big", deadline=Deadline(5))


def test_files_grouped_into_quants(site: Site) -> None:
    found = offered(site)
    sizes = [(item.quant, item.size_bytes, len(item.files)) for item in found.quants]
    assert sizes == [
        ("Q8_0", 100, 2),
        ("BF16", 99, 1),
        ("UD-IQ2_M", 45, 2),
        ("Q4_K_M", 30, 1),
        ("i1-IQ1_S", 10, 1),
    ]
    assert [file.path for file in found.projectors] == ["mmproj-BF16.gguf"]
    assert found.config == hub.HubFile(path="config.json", size_bytes=1, oid="1")
    assert found.quants[0].missing == ("Big-Q8_0-00002-of-00003.gguf",)
    assert [choice.quant for choice in choices("hf:someone/Big")] == [
        "BF16",
        "UD-IQ2_M",
        "Q4_K_M",
        "i1-IQ1_S",
    ]


@pytest.mark.parametrize(
    ("text", "quant"),
    [
        ("hf:someone/Big", "Q4_K_M"),
        ("hf:someone/Big:iq2_m", "UD-IQ2_M"),
        ("hf:someone/Big:UD-IQ2_M", "UD-IQ2_M"),
        ("hf:someone/Big:IQ1_S", "i1-IQ1_S"),
        ("hf:someone/Big/BF16/big.gguf", "BF16"),
        ("hf:someone/Big:Big-Q4_K_M.gguf", "Q4_K_M"),
    ],
)
def test_which_quant_is_meant(site: Site, text: str, quant: str) -> None:
    assert hub.choose(offered(site), hub.parse(text), None).quant == quant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf:someone/Big:Q8_0", "1 parts of Q8_0 are not in it: Big-Q8_0-00002-of-00003.gguf"),
        ("hf:someone/Big:Q4_K_S", "no 'Q4_K_S' in it; did you mean Q4_K_M; it has Q8_0 (0.0 GB), BF16"),
        ("hf:someone", "not a repository; expected hf:OWNER/REPO"),
        ("hf:someone/Big:", "not a repository"),
        ("hf:some one/Big", "not a repository"),
        ("hf:../../etc", "not a repository"),
        ("hf:someone/Big/config.json", "not a repository"),
        ("hf:a/b\n", "there is no such repository"),
    ],
)
def test_what_is_not_there(site: Site, text: str, said: str) -> None:
    offered(site)
    assert said in refusal(text)


def test_two_files_of_one_quant(site: Site) -> None:
    site.hub("someone/Two", {"a-Q8_0.gguf": gguf(), "b-Q8_0.gguf": gguf()})
    assert "2 files are Q8_0: a-Q8_0.gguf, b-Q8_0.gguf; name one, as hf:someone/Two/" in refusal(
        "hf:someone/Two:Q8_0"
    )
    assert same(resolve_model("hf:someone/Two/b-Q8_0.gguf"), gguf())


def test_the_quant_is_said_twice(site: Site) -> None:
    assert resolve_model(f"hf:{REPO}:Q8_0", "Q8_0").quant == "Q8_0"
    assert "say it once" in refusal(f"hf:{REPO}:Q8_0", "Q4_0")
    assert resolve_model(f"hf:{REPO}", "q8_0").quant == "Q8_0"


def test_a_split_model(site: Site, tmp_path: Path) -> None:
    files = split_model(tmp_path)
    site.hub("someone/Split", {f"Q8_0/{name}": data for name, data in files.items()})
    spec = resolve_model("hf:someone/Split:Q8_0")
    assert len(spec.tensors) == 3
    assert spec.file_bytes == sum(map(len, files.values()))
    assert spec.download
    assert spec.download.argv[4] == "Q8_0/Tiny-Q8_0-*-of-00003.gguf"
    assert (spec.path or "").endswith("Q8_0/Tiny-Q8_0-00001-of-00003.gguf")


def test_a_part_that_is_of_another_model(site: Site, tmp_path: Path) -> None:
    files = split_model(tmp_path)
    names = list(files)
    files[names[1]] = files[names[2]]
    site.hub("someone/Split", files)
    assert "expected part 2 of 3" in refusal("hf:someone/Split:Q8_0")


def test_links_to_the_hub_are_its_files(site: Site) -> None:
    for kind in ("resolve", "blob"):
        spec = resolve_model(f"{site.url}/{REPO}/{kind}/main/Tiny-Q8_0.gguf?download=true")
        assert spec.download
        assert spec.download.argv[:3] == ("hf", "download", REPO)


# https://huggingface.co/HuggingFaceTB/SmolLM2-135M/blob/main/config.json
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}


def test_a_repository_of_unconverted_weights(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.dumps(SMOLLM2).encode()
    site.hub("HuggingFaceTB/SmolLM2-135M", {"config.json": config, "model.safetensors": b"x" * 269})
    assert choices("hf:HuggingFaceTB/SmolLM2-135M") == ()
    spec = resolve_model("hf:HuggingFaceTB/SmolLM2-135M", "Q4_K_M")
    assert spec.parameters == 134_515_008  # as the hub states it
    assert spec.quant == "Q4_K_M"
    assert spec.made_with
    assert spec.download
    assert spec.download.argv[:3] == ("hf", "download", "HuggingFaceTB/SmolLM2-135M")
    assert spec.download.size_bytes == 269
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model("hf:HuggingFaceTB/SmolLM2-135M:Q8_0").quant == "Q8_0"


@pytest.mark.parametrize("config", [b"[]", b"<html>", b"{}", b"[" * 100_000])
def test_a_config_that_is_none(site: Site, config: bytes) -> None:
    site.hub("someone/Odd", {"config.json": config})
    assert "config.json" in refusal("hf:someone/Odd")


@pytest.mark.parametrize("value", ["huggingface.co", "ftp://x", "https://u:p@h", "http://[oops"])
def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    assert "HF_ENDPOINT is not a URL" in refusal(f"hf:{REPO}:Q8_0")
