"""The `vllm serve` command of a plan, for one machine or for every node of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from plan_llama.engines.launch import FurtherCommand, LaunchCommand, LaunchFile
from plan_llama.engines.nodes import Nodes
from plan_llama.engines.vllm import manifest
from plan_llama.engines.vllm.flags import ENGINE, VERSION
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.vllm.attention import architecture_of
from plan_llama.memory.vllm.budget import assumed, batch_defaults
from plan_llama.solver.vllm.rules import Setup

_PORT = 8000
_MASTER_PORT = 29501
_RAY_PORT = 6379


def command(
    setup: Setup,
    machine: Machine,
    used: Sequence[Gpu],
    *,
    nodes: Nodes | None = None,
    executable: str = "vllm",
    port: int = _PORT,
) -> LaunchCommand:
    """The command; with several nodes that of the first, and beside it those of the others, Ray's and a manifest.

    `used` are the GPUs of the plan; where the machine has more, CUDA_VISIBLE_DEVICES names them.
    """
    nodes = nodes or Nodes()
    argv = [executable, "serve", setup.checkpoint.location]
    if setup.checkpoint.revision:
        argv += ["--revision", setup.checkpoint.revision]
    argv += [*_parallel(setup), *_memory(setup), *_model(setup)]
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    env = _env(setup, machine, used)
    if nodes.count == 1:
        return LaunchCommand(engine=ENGINE, build=VERSION, argv=(*argv, *listen), env=env)
    return LaunchCommand(
        engine=ENGINE,
        build=VERSION,
        argv=(*argv, *_node(nodes, 0), *listen),
        env=env,
        files=(
            LaunchFile(
                name="leader-worker-set.yaml",
                text=manifest.text(setup, tuple(argv[2:]), env, nodes.count, machine, port=port),
            ),
        ),
        further=(
            *(
                FurtherCommand(what=f"On {nodes.name(rank)}", argv=(*argv, *_node(nodes, rank)), env=env)
                for rank in range(1, nodes.count)
            ),
            *_ray(argv, listen, env, nodes),
        ),
    )


def _parallel(setup: Setup) -> list[str]:
    ranks = setup.start.ranks
    argv = ["--tensor-parallel-size", str(ranks.tensor)]
    if ranks.pipeline > 1:
        argv += ["--pipeline-parallel-size", str(ranks.pipeline)]
    if ranks.data > 1:
        argv += ["--data-parallel-size", str(ranks.data)]
    if ranks.expert:
        argv.append("--enable-expert-parallel")
    if ranks.context > 1:
        argv += ["--decode-context-parallel-size", str(ranks.context)]
    return argv


def _memory(setup: Setup) -> list[str]:
    start, card = setup.start, setup.card
    argv = ["--max-model-len", str(start.max_model_len)]
    if start.kv_bytes is not None:
        argv += ["--kv-cache-memory-bytes", str(start.kv_bytes)]
    if start.utilisation != assumed().utilisation:
        argv += ["--gpu-memory-utilization", f"{start.utilisation:g}"]
    sequences, batched = batch_defaults(card) if card else (0, 0)
    if start.max_num_seqs != sequences:
        argv += ["--max-num-seqs", str(start.max_num_seqs)]
    if start.max_num_batched_tokens != batched:
        argv += ["--max-num-batched-tokens", str(start.max_num_batched_tokens)]
    if setup.kv_dtype != "auto":
        argv += ["--kv-cache-dtype", setup.kv_dtype]
    if start.offload_bytes:
        argv += ["--cpu-offload-gb", f"{start.offload_bytes / 2**30:g}"]
    return argv


def _model(setup: Setup) -> list[str]:
    argv = []
    if setup.dtype != "auto":
        argv += ["--dtype", setup.dtype]
    if setup.checkpoint.multimodal:
        argv.append("--language-model-only")
    known = architecture_of(setup.checkpoint.spec)
    if known.tool_parser:
        argv += ["--enable-auto-tool-choice", "--tool-call-parser", known.tool_parser]
    if known.reasoning_parser:
        argv += ["--reasoning-parser", known.reasoning_parser]
    return argv


def _env(setup: Setup, machine: Machine, used: Sequence[Gpu]) -> dict[str, str]:
    """Which cards are meant, and switches without which the plan's backend is not chosen."""
    env: dict[str, str] = {}
    card = setup.card
    rocm = card is not None and card.gfx is not None
    if len(used) < len(machine.gpus) or setup.start.ranks.world < len(used) * setup.nodes:
        kind = (used[0].name, used[0].total_bytes)
        places = [i for i, gpu in enumerate(machine.gpus) if (gpu.name, gpu.total_bytes) == kind]
        places = places[: max(1, setup.start.ranks.world // setup.nodes)]
        env["HIP_VISIBLE_DEVICES" if rocm else "CUDA_VISIBLE_DEVICES"] = ",".join(map(str, places))
        if len({(gpu.name, gpu.total_bytes) for gpu in machine.gpus}) > 1 and not rocm:
            env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if rocm:
        env["VLLM_ROCM_USE_AITER"] = "1"
    return env


def _node(nodes: Nodes, rank: int) -> list[str]:
    """What one node is told beside the plan (vLLM's own way of more than one node: no Ray)."""
    argv = ["--nnodes", str(nodes.count), "--node-rank", str(rank)]
    argv += ["--master-addr", nodes.head, "--master-port", str(_MASTER_PORT)]
    return argv if rank == 0 else [*argv, "--headless"]


def _ray(
    argv: Sequence[str], listen: Sequence[str], env: dict[str, str], nodes: Nodes
) -> list[FurtherCommand]:
    """The same on a Ray cluster: one command, after Ray runs on every node."""
    head = ["ray", "start", "--head", "--node-ip-address", nodes.head, "--port", str(_RAY_PORT)]
    worker = ["ray", "start", "--address", f"{nodes.head}:{_RAY_PORT}", "--block"]
    return [
        FurtherCommand(what=f"With Ray instead: first on {nodes.name(0)}", argv=tuple(head)),
        FurtherCommand(what="With Ray instead: on every other node", argv=tuple(worker)),
        FurtherCommand(
            what=f"With Ray instead: then once, on {nodes.name(0)}",
            argv=(*argv, "--distributed-executor-backend", "ray", *listen),
            env=env,
        ),
    ]


def with_arguments(made: LaunchCommand, extra: Sequence[str]) -> LaunchCommand:
    """A command with further words in front of its address."""
    place = made.argv.index("--host") if "--host" in made.argv else len(made.argv)
    return replace(made, argv=(*made.argv[:place], *extra, *made.argv[place:]))
