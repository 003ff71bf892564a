"""The compose file under Docker Compose itself: `config` reads it whole, puts variables in, and needs no daemon."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from plan_llama.launchers import containers
from tests.unit.launchers.test_formats import SIGNS, inside, recipe

pytestmark = pytest.mark.engine
VALUE = "$x ${HOME} $$ '\" \\ `"


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """Docker Compose of the second generation: the program in $PLAN_LLAMA_COMPOSE, else `docker compose`."""
    given = os.environ.get("PLAN_LLAMA_COMPOSE")
    argv = [given] if given else ["docker", "compose"]
    try:
        said = subprocess.run(
            [*argv, "version", "--short"], capture_output=True, text=True, timeout=30, check=False
        )
        found = said.stdout.strip().removeprefix("v")
    except OSError:
        found = ""
    if not found[:1].isdigit() or int(found.split(".")[0]) < 2:
        pytest.fail(
            f"{' '.join(argv)} is not Docker Compose 2 or newer; install it, or name it in PLAN_LLAMA_COMPOSE"
        )
    return argv


def read(argv: list[str], text: str, folder: Path) -> dict[str, Any]:
    """The service as Docker Compose understands it."""
    file = folder / containers.COMPOSE_NAME
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [*argv, "-f", str(file), "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "x": "put in"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    service: dict[str, Any] = json.loads(done.stdout)["services"]["llama-server"]
    return service


def plain(word: str) -> str:
    """`config` prints a file that means the same, so its dollars are doubled."""
    return word.replace("$$", "$")


@pytest.mark.parametrize("backend", ["cuda", "rocm", "vulkan", "sycl"])
def test_docker_compose_reads_every_word(compose: list[str], tmp_path: Path, backend: str) -> None:
    made = recipe("--alias", *SIGNS.split(" "), "", "a b", env={"A": VALUE}, backend=backend)
    service = read(compose, containers.compose(made), tmp_path)
    assert [plain(word) for word in service["command"]] == inside(made)[1:]
    assert plain(service["environment"]["A"]) == VALUE
    (port,) = service["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "8080", 8080)
    (volume,) = service["volumes"]
    assert (volume["source"], volume["read_only"]) == ("/srv/models", True)
    assert service["ulimits"] == {"memlock": {"soft": -1, "hard": -1}}
    if backend == "cuda":
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["device_ids"]) == ("nvidia", ["GPU-1234-ab"])


def test_docker_compose_takes_the_key_as_a_secret(compose: list[str], tmp_path: Path) -> None:
    made = recipe("--api-key-file", "/etc/llama key $x")
    service = read(compose, containers.compose(made), tmp_path)
    assert [item["source"] for item in service["secrets"]] == ["llama_api_key"]
    assert service["command"][-2:] == ["--api-key-file", "/run/secrets/llama_api_key"]
