"""llama.cpp over several machines: RPC servers that lend their GPUs, and what the network costs.

Source: src/llama.cpp (devices of RPC servers stand in front of the machine's own), ggml/src/ggml-rpc/ggml-rpc.cpp
(their names, and what goes over the wire) and tools/rpc/rpc-server.cpp, llama.cpp b11434.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from plan_llama.engines import overrides
from plan_llama.engines.launch import FurtherCommand, LaunchCommand
from plan_llama.engines.nodes import Nodes
from plan_llama.findings import Finding
from plan_llama.hardware.types import Gpu
from plan_llama.solver.types import Candidate, Plan
from plan_llama.speed.constants import shipped
from plan_llama.speed.types import Rate, Request, SpeedEstimate

PORT = 50052
# Of the network, where nobody says more: 10 Gbit/s Ethernet and its round trip through both systems.
LINK_BYTES_PER_S = 10e9 / 8
ROUND_TRIP_S = 0.2e-3
_TRIPS = 2  # a card's share of a pass: its input is sent, the graph is started, and its result is fetched
_FLOAT = 4  # hidden states cross in 32 bits


def command(made: LaunchCommand, gpus: Sequence[Gpu], nodes: Nodes, local: int) -> LaunchCommand:
    """The server's command with the RPC servers in it, and each of theirs.

    `gpus` are all cards of the plan: `local` of every other machine in turn, then the first one's.
    """
    endpoints = [f"{nodes.address(rank)}:{PORT}" for rank in range(1, nodes.count)]
    lent = local * (nodes.count - 1)
    names = overrides.device_names(gpus)
    own = overrides.device_names(gpus[lent:])
    devices = {names[i]: f"RPC{i}" for i in range(lent)} | dict(zip(names[lent:], own, strict=True))
    # a device has its number among all, its buffers have that on their own server (ggml_backend_rpc_buffer_type)
    buffers = {names[i]: f"RPC{i % local}[{endpoints[i // local]}]" for i in range(lent)}
    buffers |= dict(zip(names[lent:], own, strict=True))
    argv, flag = [], ""
    for word in made.argv:
        if flag == "--device":
            argv.append(",".join(devices.get(name, name) for name in word.split(",")))
        elif flag in ("-ot", "--override-tensor"):
            argv.append(re.sub(r"=([A-Za-z]+\d+)", lambda m: "=" + buffers.get(m[1], m[1]), word))
        elif flag == "--mmproj-device":
            argv.append(devices.get(word, word))
        else:
            argv.append(word)
        flag = word
    # the parser reads from left to right: what names their devices must find them
    place = argv.index("-m") + 2 if "-m" in argv else 1
    argv[place:place] = ["--rpc", ",".join(endpoints)]
    servers = tuple(
        FurtherCommand(
            what=f"First, on {nodes.name(rank)}",
            argv=("ggml-rpc-server", "-H", nodes.address(rank), "-p", str(PORT), "-c"),
        )
        for rank in range(1, nodes.count)
    )
    env = dict(made.env)
    if len({(gpu.name, gpu.total_bytes) for gpu in gpus[lent:]}) == 1:  # the first machine's own are alike
        env.pop("CUDA_DEVICE_ORDER", None)
    return replace(made, argv=tuple(argv), env=env, further=(*servers, *made.further))


def findings(nodes: Nodes) -> list[Finding]:
    """What must be known before an RPC server is started."""
    said = [
        Finding(
            id="rpc-no-authentication",
            severity="warning",
            text="an RPC server asks nobody who he is and its traffic is not encrypted: whoever reaches its port can "
            "use the machine's memory, and crash it or worse",
            fix=f"a firewall that lets only {nodes.head} reach port {PORT}, or a tunnel (WireGuard, ssh -L)",
        ),
        Finding(
            id="rpc-same-build",
            severity="note",
            text="all machines need the same build of llama.cpp, made with GGML_RPC; weights go over the network at "
            "the first load and are then kept by -c",
        ),
    ]
    if not nodes.addresses:
        said.append(
            Finding(
                id="node-address-missing",
                severity="warning",
                text=f"{nodes.address(1)} in the commands stands for the private address of node 1, and so on",
                fix="--node-address, once for each machine, writes them",
            )
        )
    return said


def counted(plan: Plan, nodes: Nodes, local: int, width: int, request: Request) -> Plan:
    """The plan with the network in its speeds. `width` is the model's hidden size."""

    def over(item: Candidate) -> Candidate:
        return replace(item, speed=_over(item, nodes, local, width, request))

    chosen = over(plan.chosen)
    ladder = tuple(
        replace(
            rung,
            candidate=chosen
            if rung.candidate is plan.chosen
            else over(rung.candidate)
            if rung.candidate
            else None,
        )
        for rung in plan.ladder
    )
    return replace(plan, chosen=chosen, ladder=ladder)


def _over(item: Candidate, nodes: Nodes, local: int, width: int, request: Request) -> SpeedEstimate:
    """One estimate: every lent card in use takes the hidden states over the network and back, in every pass."""
    lent = local * (nodes.count - 1)
    used = sum(1 for device in item.footprint.devices[:lent] if device.weights_bytes)
    if not used:
        return item.speed
    speed, settings = item.speed, item.settings
    per_row = 2 * width * _FLOAT / LINK_BYTES_PER_S
    token_s = used * (_TRIPS * ROUND_TRIP_S + per_row)
    passes = -(-request.prompt_tokens // settings.ubatch)
    network_s = used * (passes * _TRIPS * ROUND_TRIP_S + request.prompt_tokens * per_row)
    prompt_s = request.prompt_tokens / speed.prefill_tok_s.expected * _apart(item, passes) + network_s
    decode_s = 1 / speed.decode_tok_s.expected + token_s
    remote = sum(device.weights_bytes for device in item.footprint.devices[:lent])
    load_s = speed.load_s + remote / LINK_BYTES_PER_S if speed.load_s is not None else None
    longer = prompt_s - request.prompt_tokens / speed.prefill_tok_s.expected + token_s
    return replace(
        speed,
        decode_tok_s=_scaled(speed.decode_tok_s, 1 / decode_s),
        prefill_tok_s=_scaled(speed.prefill_tok_s, request.prompt_tokens / prompt_s),
        aggregate_tok_s=speed.aggregate_tok_s / (decode_s * speed.decode_tok_s.expected),
        ttft_s=speed.ttft_s + longer,
        follow_up_ttft_s=speed.follow_up_ttft_s + longer,
        request_s=speed.request_s + longer + request.output_tokens * token_s,
        load_s=load_s,
        load=None,
        bound_by="network between the machines" if token_s > decode_s / 2 else speed.bound_by,
        parts={**speed.parts, "network": token_s},
        assumptions=(
            *speed.assumptions,
            f"network assumed: 10 Gbit/s, {ROUND_TRIP_S * 1e3:g} ms there and back, {used} lent cards",
        ),
    )


def _apart(item: Candidate, passes: int) -> float:
    """llama.cpp waits for a lent card before it hands on what that one computed (cpy_tensor_async is null in
    ggml_backend_rpc_interface): the pipeline over cards, which is on and in the estimate, is not counted on."""
    cards = sum(1 for device in item.footprint.devices if device.weights_bytes)
    whole = not item.settings.overrides and item.settings.split_mode == "layer"
    if cards < 2 or not whole or item.cpu_moe_layers:
        return 1.0
    return float(((passes + cards - 1) / (passes * cards)) ** -shipped().pipeline)


def _scaled(rate: Rate, expected: float) -> Rate:
    ratio = expected / rate.expected
    return Rate(low=rate.low * ratio, expected=expected, high=rate.high * ratio)
