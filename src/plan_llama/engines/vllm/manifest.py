"""A Kubernetes LeaderWorkerSet that runs a plan on several nodes, after the form in vLLM's documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from plan_llama.engines.vllm.flags import VERSION
from plan_llama.hardware.types import Machine
from plan_llama.solver.vllm.rules import Setup
from plan_llama.units import GIB

_NAME = "vllm"
_SHM_GIB = 15
_IMAGE = f"vllm/vllm-openai:v{VERSION}.0"


def text(
    setup: Setup,
    words: Sequence[str],
    env: Mapping[str, str],
    nodes: int,
    machine: Machine,
    *,
    port: int,
) -> str:
    """The manifest: one leader with the API, `nodes` - 1 workers, and a Service in front of the leader.

    `words` are those of `vllm serve` behind the subcommand. Strings are quoted as JSON, which YAML reads.
    """
    variables = {name: value for name, value in env.items() if not name.endswith("VISIBLE_DEVICES")}
    parts = [
        "apiVersion: leaderworkerset.x-k8s.io/v1",
        "kind: LeaderWorkerSet",
        "metadata:",
        f"  name: {_NAME}",
        "spec:",
        "  replicas: 1",
        "  leaderWorkerTemplate:",
        f"    size: {nodes}",
        "    restartPolicy: RecreateGroupOnPodRestart",
        "    leaderTemplate:",
        "      metadata:",
        "        labels:",
        "          role: leader",
        "      spec:",
        *_pod(setup, words, variables, machine, port=port, leader=True),
        "    workerTemplate:",
        "      spec:",
        *_pod(setup, words, variables, machine, port=port, leader=False),
        "---",
        "apiVersion: v1",
        "kind: Service",
        "metadata:",
        f"  name: {_NAME}-leader",
        "spec:",
        "  type: ClusterIP",
        "  ports:",
        "    - name: http",
        f"      port: {port}",
        "      protocol: TCP",
        f"      targetPort: {port}",
        "  selector:",
        f"    leaderworkerset.sigs.k8s.io/name: {_NAME}",
        "    role: leader",
    ]
    return "\n".join(parts) + "\n"


def _pod(
    setup: Setup,
    words: Sequence[str],
    env: Mapping[str, str],
    machine: Machine,
    *,
    port: int,
    leader: bool,
) -> list[str]:
    """One pod. `$(NAME)` in a command's words is replaced by Kubernetes, not by a shell."""
    gpu = "amd.com/gpu" if setup.card is not None and setup.card.gfx is not None else "nvidia.com/gpu"
    command = ["vllm", "serve", *words, *_ranks(leader=leader)]
    if leader:
        command += ["--host", "0.0.0.0", "--port", str(port)]  # noqa: S104 - inside the pod; the Service is ClusterIP
    memory = max(1, machine.ram.available_bytes * 9 // 10 // GIB)
    lines = ["containers:", f"  - name: {_NAME}-{'leader' if leader else 'worker'}", f"    image: {_IMAGE}"]
    lines += ["    command:", *(f"      - {json.dumps(word)}" for word in command)]
    if env:
        lines.append("    env:")
        for name, value in env.items():
            lines += [f"      - name: {name}", f"        value: {json.dumps(value)}"]
    lines += [
        "    resources:",
        "      limits:",
        f"        {gpu}: {json.dumps(str(setup.gpus))}",
        f"        memory: {memory}Gi",
        "      requests:",
        f"        {gpu}: {json.dumps(str(setup.gpus))}",
        f"        memory: {memory}Gi",
    ]
    if leader:
        lines += ["    ports:", f"      - containerPort: {port}"]
        lines += ["    readinessProbe:", "      tcpSocket:", f"        port: {port}"]
        lines += ["      initialDelaySeconds: 30", "      periodSeconds: 15", "      failureThreshold: 480"]
    lines += ["    volumeMounts:", "      - mountPath: /dev/shm", "        name: shm"]
    lines += [
        "volumes:",
        "  - name: shm",
        "    emptyDir:",
        "      medium: Memory",
        f"      sizeLimit: {_SHM_GIB}Gi",
    ]
    return [" " * 8 + line for line in lines]


def _ranks(*, leader: bool) -> list[str]:
    argv = ["--nnodes", "$(LWS_GROUP_SIZE)", "--node-rank", "$(LWS_WORKER_INDEX)"]
    argv += ["--master-addr", "$(LWS_LEADER_ADDRESS)"]
    return argv if leader else [*argv, "--headless"]
