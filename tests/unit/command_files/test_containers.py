"""Compose, llama-swap and Kubernetes files, in the forms that their own documentation shows."""

from __future__ import annotations

import pytest

from plan_llama.command_files import containers
from plan_llama.errors import InputError

ANY = "0.0.0.0"  # noqa: S104 - what the image sets


def one(text: str) -> tuple[list[str], dict[str, str]]:
    (item,) = containers.commands(text)
    return [word.text for word in item.words], dict(item.env)


COMPOSE = """
services:
  web: {image: "nginx:1"}
  llm:
    image: ghcr.io/ggml-org/llama.cpp:server-cuda
%s
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    command: -m /models/m.gguf -c 4096", ["-m", "/models/m.gguf", "-c", "4096"]),
        ("    command: >\n      -m '/a b.gguf'\n      --alias \"x $${y}\"\n", ["-m", "/a b.gguf", "--alias", "x ${y}"]),
        ('    command: ["-m", "/a b.gguf", -c, 4096, --jinja]', ["-m", "/a b.gguf", "-c", "4096", "--jinja"]),
        ("    command: -c ${CTX:-8 192} -np ${N-2} -m x", ["-c", "8", "192", "-np", "2", "-m", "x"]),
        ("    environment:\n      LLAMA_ARG_MODEL: /m.gguf\n      LLAMA_ARG_JINJA: true\n", []),
    ],
)  # fmt: skip
def test_a_compose_command(body: str, words: list[str]) -> None:
    found, env = one(COMPOSE % body)
    assert found == ["llama-server", *words]
    assert env["LLAMA_ARG_HOST"] == ANY


def test_environment_and_entrypoint() -> None:
    body = "    environment: [LLAMA_ARG_CTX_SIZE=4096, HF_TOKEN]\n"
    body += "    entrypoint: /app/llama-cli -m\n    command: [x.gguf]\n"
    words, env = one(COMPOSE % body)
    assert words == ["/app/llama-cli", "-m", "x.gguf"]
    assert env == {"LLAMA_ARG_CTX_SIZE": "4096"}


def test_what_only_the_environment_knows_is_told_apart() -> None:
    (item,) = containers.commands(COMPOSE % "    command: -m ${MODEL} -c ${CTX:?set it} -np $N")
    assert [word.text for word in item.words if not word.known] == ["${MODEL}", "${CTX:?set it}", "$N"]


SWAP = """
startPort: 9000
macros:
  bin: /usr/bin/llama-server
  common: "${bin} --port ${PORT} -np 1"
models:
  a:
    cmd: |
      # comments are left out
      ${common}
      -m "/models/a b.gguf" \\
      --alias ${MODEL_ID}
    env: [CUDA_VISIBLE_DEVICES=0]
  b: {cmd: "vllm serve x"}
"""


def test_llama_swap() -> None:
    ours, other = containers.commands(SWAP)
    assert [word.text for word in ours.words] == [
        *("/usr/bin/llama-server", "--port", "9000", "-np", "1", "-m", "/models/a b.gguf", "--alias", "a"),
    ]
    assert ours.env == {"CUDA_VISIBLE_DEVICES": "0"}
    assert [word.text for word in other.words] == ["vllm", "serve", "x"]


POD = """
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
        - name: llm
          image: ghcr.io/ggml-org/llama.cpp:server-cuda
          args: ["-m", "/models/m.gguf", "-c", "4096"]
          env: [{name: LLAMA_ARG_NP, value: "2"}, {name: KEY, valueFrom: {}}]
"""


def test_kubernetes() -> None:
    words, env = one("---\nkind: Service\napiVersion: v1\n---" + POD)
    assert words == ["llama-server", "-m", "/models/m.gguf", "-c", "4096"]
    assert env == {"LLAMA_ARG_HOST": ANY, "LLAMA_ARG_NP": "2"}


@pytest.mark.parametrize("text", ["services: [", "a: &a [*a", "\t- x: 1"])
def test_no_yaml(text: str) -> None:
    with pytest.raises(InputError, match="not YAML"):
        containers.commands(text)


@pytest.mark.parametrize(
    "text", ["services: {a: 1}", "models: {a: {cmd: 3}}", "kind: Pod\nspec: {containers: [1]}", "- 1"]
)
def test_other_shapes_hold_no_command(text: str) -> None:
    assert containers.commands(text) == []


def test_a_default_in_a_default() -> None:
    """As `docker compose config` puts it in."""
    text = "services: {a: {image: 'ghcr.io/ggml-org/llama.cpp:server', command: '-m x.gguf"
    text += " --temp ${A:-${B:-1.0}} -c ${A:-${B:-${C-4096}}} -np ${A:-${B}}'}}"
    (found,) = containers.commands(text)
    shown = [(word.text, word.known) for word in found.words]
    assert ("1.0", True) in shown
    assert ("4096", True) in shown
    assert shown[-1][1] is False
