"""Secrets and names are taken out, and ordinary lines are left alone."""

from __future__ import annotations

import pytest

from plan_llama.doctor.redact import redacted


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
    ],
)
def test_other_lines_stay(line: str) -> None:
    assert redacted(line) == line
