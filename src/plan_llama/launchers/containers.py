"""A compose file (Docker, Podman) and a Kubernetes manifest around the published images of llama.cpp.

The images are those of docs/docker.md and .devops/ (b11434): `server` enters llama-server. Inside of a container it
listens on every address of the container; what others reach is decided by the ports that are published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from plan_llama.errors import InputError
from plan_llama.hardware.types import Backend
from plan_llama.launchers.types import LOOPBACK, NAME, GpuNeed, Recipe, check_words, only_llama_cpp
from plan_llama.launchers.yaml_text import Node, dump

COMPOSE_NAME = "compose.yaml"
KUBERNETES_NAME = f"{NAME}.k8s.yaml"
_IMAGE = "ghcr.io/ggml-org/llama.cpp"
_VARIANT: Mapping[Backend, str] = {"cuda": "-cuda", "rocm": "-rocm", "vulkan": "-vulkan", "sycl": "-intel"}
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - inside of a container; the published port decides who gets there
_PORT = 8080
_MODELS = "/models"
_KEY_FILE = "/run/secrets/llama_api_key"
_ANY = ("--host", "--port", "--api-key-file")


def compose(recipe: Recipe) -> str:
    """The compose file. Raises InputError for cards that no container reaches, and for a word with a NUL character."""
    check_words(recipe, raw=False)
    folders = _folders(recipe)
    service: dict[str, Node] = {
        "image": _image(recipe),
        "command": [word.replace("$", "$$") for word in _arguments(recipe, folders)],
        "volumes": [
            {
                "type": "bind",
                "source": folder.replace("$", "$$"),
                "target": target,
                "read_only": True,
                "bind": {"create_host_path": False},  # a folder that is not there is an error
            }
            for folder, target in folders.items()
        ],
        # what is published: only this machine gets in, unless the plan says otherwise
        "ports": [f"{_address(recipe.host)}:{recipe.port}:{_PORT}"],
        "ulimits": {"memlock": {"soft": -1, "hard": -1}},
        "shm_size": "1gb",
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
    }
    if recipe.command.env:
        service["environment"] = {
            name: value.replace("$", "$$") for name, value in recipe.command.env.items()
        }
    service |= _compose_gpus([gpu for gpu in recipe.needs.gpus if gpu.used])
    whole: dict[str, Node] = {"services": {NAME: service}}
    if recipe.asks_key:
        service["secrets"] = ["llama_api_key"]
        whole["secrets"] = {"llama_api_key": {"file": _key_file(recipe).replace("$", "$$")}}
    return _head(recipe, f"docker compose up, or podman compose up ({COMPOSE_NAME})") + dump(whole)


def kubernetes(recipe: Recipe) -> str:
    """A Deployment and a Service. Its first container looks whether the files are there in full.

    The key comes from a Secret: every pod of the cluster reaches the server.
    """
    check_words(recipe, raw=False)
    folders = _folders(recipe)
    mounts: list[Node] = [
        {"name": f"models-{place}", "mountPath": target, "readOnly": True}
        for place, target in enumerate(folders.values())
    ]
    image = _image(recipe)
    memory = max(1, -(-recipe.needs.ram_need_bytes // (1 << 20)))
    cards = [gpu for gpu in recipe.needs.gpus if gpu.used]
    resources: dict[str, Node] = {"requests": {"memory": f"{memory}Mi"}}
    resource = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu", "vulkan": "", "sycl": "gpu.intel.com/i915"}
    if cards and (name := resource[cards[0].backend]):
        resources["limits"] = {name: str(len(cards))}
    arguments = _arguments(recipe, folders, key=False)
    server: dict[str, Node] = {
        "name": NAME,
        "image": image,
        # $(NAME) is a variable of Kubernetes
        "args": [word.replace("$", "$$") for word in arguments],
        "env": [
            {"name": "LLAMA_API_KEY", "valueFrom": {"secretKeyRef": {"name": NAME, "key": "api-key"}}},
            *(
                {"name": name, "value": value.replace("$", "$$")}
                for name, value in recipe.command.env.items()
            ),
        ],
        "ports": [{"name": "http", "containerPort": _PORT}],
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 10,
            "failureThreshold": 360,
        },
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 30,
            "failureThreshold": 10,
        },
        "resources": resources,
        "volumeMounts": mounts,
    }
    sizes = [
        word for item in recipe.needs.files for word in (_inside(item.path, folders), str(item.size_bytes))
    ]
    look: dict[str, Node] = {
        "name": "files-complete",
        "image": image,
        "command": ["/bin/sh", "-c", _LOOK, "files-complete", *(word.replace("$", "$$") for word in sizes)],
        "volumeMounts": mounts,
    }
    pod: dict[str, Node] = {
        "initContainers": [look],
        "containers": [server],
        "volumes": [
            {"name": f"models-{place}", "hostPath": {"path": folder, "type": "Directory"}}
            for place, folder in enumerate(folders)
        ],
    }
    labels: dict[str, Node] = {"app": NAME}
    deployment: dict[str, Node] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # the card has no room for two
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service: dict[str, Node] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": _PORT, "targetPort": "http"}]},
    }
    secret = (
        f"# kubectl create secret generic {NAME} --from-file=api-key=FILE makes the key that it asks for.\n"
    )
    folder = (
        "# The models are read from a folder of the node (hostPath); a PersistentVolumeClaim does as well.\n"
    )
    head = _head(recipe, f"kubectl apply -f {KUBERNETES_NAME}") + secret + folder
    return head + dump(deployment) + "---\n" + dump(service)


_LOOK = """\
while [ "$#" -gt 0 ]; do
  if [ ! -f "$1" ]; then echo "$1: no such file; download it first" >&2; exit 1; fi
  found=$(stat -L -c %s -- "$1")
  if [ "$2" -gt 0 ] && [ "$found" -ne "$2" ]; then echo "$1: has $found bytes, the plan was made for $2" >&2; exit 1; fi
  shift 2
done
""".replace("$", "$$")


def _head(recipe: Recipe, use: str) -> str:
    command = recipe.command
    lines = [
        f"# Written by plan-llama: starts {command.engine} b{command.build} as planned.",
        *([f"# {recipe.heading}"] if recipe.heading else []),
        f"# {use}. Free memory of the cards is not checked here: start-llama-server.sh --check does.",
    ]
    return "\n".join(lines) + "\n"


def _image(recipe: Recipe) -> str:
    """The image of the plan's build for the cards that it uses."""
    only_llama_cpp(recipe, "the only image that is known here")
    backends = {gpu.backend for gpu in recipe.needs.gpus if gpu.used}
    if len(backends) > 1 or backends - set(_VARIANT):
        raise InputError(
            f"no image of llama.cpp reaches these cards: {', '.join(sorted(backends))}", hint="--launcher sh"
        )
    variant = _VARIANT[next(iter(backends))] if backends else ""
    build = recipe.command.build
    numbered = f"-b{build}" if isinstance(build, int) and build > 1 else ""
    return f"{_IMAGE}:server{variant}{numbered}"


def _folders(recipe: Recipe) -> dict[str, str]:
    """Folders of the model's files, and where each is in the container."""
    found: dict[str, str] = {}
    for item in recipe.needs.files:
        folder = str(Path(item.path).absolute().parent)
        found.setdefault(folder, f"{_MODELS}-{len(found) + 1}" if found else _MODELS)
    return found


def _inside(path: str, folders: Mapping[str, str]) -> str:
    whole = Path(path).absolute()
    return str(PurePosixPath(folders[str(whole.parent)]) / whole.name)


def _arguments(recipe: Recipe, folders: Mapping[str, str], *, key: bool = True) -> list[str]:
    """The command's arguments with paths, address and key as they are inside."""
    files = {item.path for item in recipe.needs.files}
    made: list[str] = []
    words = list(recipe.command.argv[1:])
    while words:
        word = words.pop(0)
        if word in _ANY and words:
            words.pop(0)
        else:
            made.append(_inside(word, folders) if word in files else word)
    made += ["--host", _EVERYWHERE, "--port", str(_PORT)]
    return [*made, "--api-key-file", _KEY_FILE] if key and recipe.asks_key else made


def _key_file(recipe: Recipe) -> str:
    argv = recipe.command.argv
    return str(Path(argv[argv.index("--api-key-file") + 1]).absolute())


def _address(host: str) -> str:
    if host == "localhost":
        return LOOPBACK
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _compose_gpus(cards: Sequence[GpuNeed]) -> dict[str, Node]:
    """How the container gets its cards."""
    if not cards:
        return {}
    backend = cards[0].backend
    if backend == "cuda":
        ids: list[Node] = [card.uuid or str(card.index) for card in cards]
        device: Node = {"driver": "nvidia", "device_ids": ids, "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
    nodes = ["/dev/kfd", "/dev/dri"] if backend == "rocm" else ["/dev/dri"]
    return {"devices": [f"{node}:{node}" for node in nodes], "group_add": ["video", "render"]}
