"""Nothing secret comes out of doctor: on the screen, as JSON, in a bundle; whatever a log, a name or a server holds."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

SECRET = "hUnter2Zq9"
TOKEN = "hf_" + "Ab3" * 9
KEY = "sk-" + "a1B2" * 8
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
LINES = [
    f"$ llama-server -m /home/alice/models/a.gguf --api-key {SECRET} -c 4096",
    f"$ llama-server -m '/home/alice/m.gguf' --api-key 'x {SECRET}' --hf-token {TOKEN}",
    f'ExecStart=/usr/bin/llama-server --api-key "y {SECRET}" -m /home/alice/a.gguf',
    "srv    load_model: loading model '/home/alice/secret-project/a.gguf'",
    f"srv    load_model: loading model 'https://alice:{SECRET}@host/a.gguf?X-Amz-Signature={SECRET}'",
    f"general.name str = /home/alice/{TOKEN}",
    f"error: invalid argument: --api-key={SECRET}",
    f'error while handling argument "--api-key": {KEY} failed',
    f'E srv operator(): got exception: {{"api_key": "{SECRET}", "token": "{TOKEN}"}}',
    f"failed: Authorization: Bearer {JWT}",
    f"failed: authorization: Basic {SECRET}{SECRET}",
    f"Error: Cookie: session={SECRET}; user=alice",
    f"error: --api-key \x1b[31m{SECRET}\x1b[0m failed",
    f"error: LLAMA_API_KEY=\u200b{SECRET} failed",
    f"error\x00: HF_TOKEN=\x07{TOKEN}",
    "\x1b]0;pwned\x07error: title",
    f"failed to open /run/media/alice/x/{KEY}",
    "Mar 02 10:00:00 alicebox sudo[1]: error: session opened for user alice USER=alice",
    "error: MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKB",
    f"error {'x' * 9000} --api-key {SECRET} {'y' * 9000}",
    f"$ llama-server --api-key {SECRET * 2000} -m a.gguf",
    f"{{cause}} {{source}} error: %s {{0}} --password {SECRET}",
]
GONE = (SECRET, TOKEN, KEY, JWT, "alice", "MIIEvQIBADANBgkqhkiG9w0BAQ", "pwned", "\x1b", "\x07", "\x00")


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_a_hostile_log(cli: Cli, tmp_path: Path, order: int) -> None:
    """Forwards and backwards: the last lines and the errors are shown word for word."""
    folder = tmp_path / "home" / "alice"
    folder.mkdir(parents=True)
    log, bundle = folder / "server.log", tmp_path / "report.txt"
    log.write_bytes("\n".join(LINES[::order]).replace("\x00", "\x01").encode() + b"\n")
    shown = cli("doctor", "--log", str(log), "--bundle", str(bundle))
    as_json = cli("doctor", "--log", str(log), "--json")
    assert (shown.code, as_json.code, shown.err, as_json.err) == (4, 4, "", "")
    text = bundle.read_text(encoding="utf-8")
    assert "End of the log:" in text
    for out in (shown.out.replace(str(bundle), ""), as_json.out, text):
        assert [one for one in GONE if one in out] == []


def test_a_command_that_is_watched(cli: Cli, tmp_path: Path) -> None:
    """What a program prints of its own arguments and environment."""
    script = tmp_path / "llama-server"
    script.write_text(
        '#!/bin/sh\necho "error: my arguments are $*"\necho "failed: HF_TOKEN=$HF_TOKEN"\nexit 3\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    bundle = tmp_path / "report.txt"
    words = ["env", f"HF_TOKEN={TOKEN}", str(script), "--api-key", f"x {SECRET}", "-m", "/home/alice/a.gguf"]
    shown = cli("doctor", "--bundle", str(bundle), "--", *words)
    assert shown.code == 4
    for out in (shown.out.replace(str(tmp_path), ""), bundle.read_text(encoding="utf-8")):
        assert [one for one in GONE if one in out] == [], shlex.join(words)


@pytest.mark.parametrize("kind", ["folder", "missing", "there"])
def test_a_bundle_that_cannot_be_written_is_one_line(cli: Cli, tmp_path: Path, kind: str) -> None:
    log = tmp_path / "a.log"
    log.write_text("error: x\n", encoding="utf-8")
    target = {"folder": tmp_path, "missing": tmp_path / "none" / "a", "there": log}[kind]
    ended = cli("doctor", "--log", str(log), "--bundle", str(target))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert log.read_text(encoding="utf-8") == "error: x\n"


def test_a_bundle_does_not_follow_a_link(cli: Cli, tmp_path: Path) -> None:
    """The link is replaced where it is asked for; what it points at stays."""
    log, other, link = tmp_path / "a.log", tmp_path / "other", tmp_path / "link"
    log.write_text("error: x\n", encoding="utf-8")
    other.write_text("mine", encoding="utf-8")
    link.symlink_to(other)
    assert cli("doctor", "--log", str(log), "--bundle", str(link)).code == 2
    assert cli("doctor", "--log", str(log), "--bundle", str(link), "--force").code == 4
    assert other.read_text(encoding="utf-8") == "mine"
