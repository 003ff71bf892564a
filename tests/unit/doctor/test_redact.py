"""Secrets and names are taken out, and ordinary lines are left alone."""

from __future__ import annotations

import pytest

from plan_llama.doctor.redact import redacted, redacted_words


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("non-default args: {'api_key': ['sk-1234567890abcd']}", "1234567890abcd"),
        ("LLAMA_API_KEY=hunter2", "hunter2"),
        ("HF_TOKEN=hf_abcdefghijkl", "abcdefghijkl"),
        ("llama-server --api-key hunter2 -m a.gguf", "hunter2"),
        ("Authorization: Bearer abcdefghijk", "abcdefghijk"),
        ("loading model '/home/alice/models/a.gguf'", "alice"),
        (r"loading model 'C:\Users\Alice Smith\models\a.gguf'", "Alice"),
        ("from /Users/alice/a.gguf", "alice"),
        ("https://alice:hunter2@host/a.gguf", "hunter2"),
        ("Mar 02 10:00:00 alicebox ollama[1]: x", "alicebox"),
        ("mail alice@example.org", "alice"),
        ("token ghp_abcdefghijklmnopqrstuv", "abcdefghijklmnopqrstuv"),
        ("llama-server --api-key 'hun ter2' -m a.gguf", "ter2"),
        ('llama-server --api-key="hun ter2" -m a.gguf', "ter2"),
        ("authorization: token hunter2 and more", "hunter2"),
        ("Proxy-Authorization: Digest username=x, response=hunter2", "hunter2"),
        ("Set-Cookie: session=hunter2; Path=/", "hunter2"),
        ("GET https://host/a.gguf?X-Amz-Signature=hunter2&x=1", "hunter2"),
        ("GET /v1/models?api_key=hunter2", "hunter2"),
        ("https://cdn/a.gguf?Policy=eyJTdGF0&Signature=hunter2&Key-Pair-Id=K1", "hunter2"),
        ("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKB", "9w0BAQEFAASC"),
        ("USER=alice HOME=/root", "alice"),
        ("uid=1000(alice) gid=1000", "alice"),
        ("pam_unix(sudo:session): session opened for user alice", "alice"),
        ("loading model '/run/media/alice/disk/a.gguf'", "alice"),
        ("loading model '/var/home/alice/a.gguf'", "alice"),
    ],
)
def test_secrets_go(line: str, secret: str) -> None:
    assert secret not in redacted(line)
    assert "***" in redacted(line) or "USER" in redacted(line) or "HOST" in redacted(line)


@pytest.mark.parametrize(
    "line",
    [
        "print_info: EOS token        = 2 '</s>'",
        "slot release: n_tokens = 38, truncated = 0",
        "security: no API key is set and CORS allows all origins",
        "load_tensors:        CUDA0 model buffer size =   101.48 MiB",
        "llama-server --image-max-tokens 1024 --n-predict 5 --tokens 7",
        "blobs/sha256-8eeb52dfb3bb9aefdf9d1ef24b3bdbcfbe82238798c4b918278320b6fcef18fe",
        "/opt/models/a/very/long/path/of/many/folders/that/goes/on/and/on/until/it/has/an/end/model",
    ],
)
def test_other_lines_stay(line: str) -> None:
    assert redacted(line) == line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--api-key", "hun ter2", "-c", "5"], ["--api-key", "***", "-c", "5"]),
        (["-hft", "x", "--hf-token", "--y", "-m"], ["-hft", "***", "--hf-token", "***", "-m"]),
        (["--api-key=hun ter2", "HF_TOKEN=a b"], ["--api-key=***", "HF_TOKEN=***"]),
        (["LLAMA_API_KEY=a b", "OLLAMA_HOST=x"], ["LLAMA_API_KEY=***", "OLLAMA_HOST=x"]),
        (
            ["--image-max-tokens", "70", "-m", "/home/alice/a"],
            ["--image-max-tokens", "70", "-m", "/home/USER/a"],
        ),
        (["--api-key"], ["--api-key"]),
    ],
)
def test_words_of_a_command(words: list[str], expected: list[str]) -> None:
    assert redacted_words(words) == expected
