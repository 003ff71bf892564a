"""A plan over three hosts, run for real on loopback: its RPC servers, its server, the memory of every device."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines import rpc
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.nodes import Nodes
from plan_llama.hardware.types import Gpu
from plan_llama.units import GIB
from tests.cli.conftest import Cli, cli  # noqa: F401 - a fixture
from tests.engine import make_model, processes
from tests.engine.measure import MIB

pytestmark = pytest.mark.engine
HOSTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
CARD_MIB = 1400  # so little that the plan takes the cards of all three
UBATCH, COPIES = 512, 4
_BUFFER = re.compile(r"RPC0\[(\S+)\] (model|KV|compute) buffer size = +([0-9.]+) MiB")
_KINDS = {"model": "weights_bytes", "KV": "context_bytes", "compute": "compute_bytes"}


def test_the_printed_commands_work_together(
    cli: Cli,  # noqa: F811
    engine_bin: Path,
    engine_cache: Path,
    tmp_path: Path,
) -> None:
    """Every address becomes one of loopback, and a further RPC server stands in for the first host's own card.

    llama.cpp puts the devices of RPC servers in front of a host's own ones, in the order of --rpc.
    """
    model = make_model.model_file(make_model.DENSE, engine_cache)
    words = [word for host in HOSTS for word in ("--node-address", host)]
    machine = ("--gpu", f"{CARD_MIB}MiB", "--ram", "32GiB", "--cpu-cores", "8", "--margin", "512MiB")
    plan = cli("--model", str(model), "--ctx", "8192", "--nodes", "3", *words, *machine, "--json").json
    assert plan["verdict"] == "fits"
    argv, servers = plan["command"]["argv"], plan["command"]["further"]
    assert [item["argv"][0] for item in servers] == ["ggml-rpc-server"] * 2
    # what a host's environment says of its own real cards has no part in it
    env = processes.engine_env(engine_bin, LLAMA_CACHE=str(tmp_path / "cache"))
    own_card = {"argv": ["ggml-rpc-server", "-H", HOSTS[0], "-p", "50052"], "env": {}}
    with contextlib.ExitStack() as hosts:
        endpoints = [
            rpc_server(hosts, engine_bin, item, env, tmp_path / f"rpc-{place}.log")
            for place, item in enumerate([*servers, own_card])
        ]
        place = argv.index("--rpc") + 1
        assert argv[place].split(",") == [f"{host}:50052" for host in HOSTS[1:]]
        port, log = processes.free_port(), tmp_path / "server.log"
        started = [str(engine_bin / argv[0]), *argv[1:], "-lv", "4", "--no-warmup"]
        started[place] = ",".join(endpoints)
        started[started.index("--port") + 1] = str(port)
        simulated = {"SIM_GPU_MIB": ",".join([str(CARD_MIB)] * 3), "SIM_GPU_USED_MIB": "0,0,0"}
        with processes.running(started, env=env | simulated, log=log) as server:
            processes.wait_until(
                lambda: processes.ask(port, "/health") == {"status": "ok"},
                server,
                log,
                what="llama-server",
                timeout_s=180,
            )
            said = processes.ask(port, "/completion", {"prompt": "w1 w2", "n_predict": 8, "ignore_eos": True})
            assert (said["tokens_predicted"], len(said["content"]) > 0) == (8, True)
        same(plan["memory"]["devices"], log.read_text(encoding="utf-8"))
        named = with_devices(endpoints, model)
        done = processes.finished([engine_bin / named[0], *named[1:], "--help"], env=env)
        assert (done.returncode, done.stderr[:300]) == (0, ""), named
        assert list((tmp_path / "cache").rglob("*")), "-c keeps the weights that crossed the network"


def with_devices(endpoints: list[str], model: Path) -> list[str]:
    """A command that names the lent cards and their buffers, of two hosts with a card each; the first has none."""
    ot = r"blk\.0\.ffn=CUDA0,blk\.1\.ffn=CUDA1,blk\.2\.ffn=CPU"
    words = ("llama-server", "-m", str(model), "--device", "CUDA1,CUDA0", "-ot", ot, "--host", "127.0.0.1")
    made = LaunchCommand(engine="llama.cpp", build=11434, argv=words, env={})
    cards = [Gpu(name="a card", total_bytes=GIB, free_bytes=GIB)] * 3
    argv = rpc.command(made, cards, Nodes(count=3, addresses=HOSTS), local=1).argv
    place = argv.index("-ot") + 1
    assert "RPC0[10.0.0.2:50052]" in argv[place]
    named = dict(zip([f"{host}:{rpc.PORT}" for host in HOSTS[1:]], endpoints[:2], strict=True))
    return [re.sub("|".join(map(re.escape, named)), lambda found: named[found[0]], word) for word in argv]


def rpc_server(
    hosts: contextlib.ExitStack, engine_bin: Path, item: dict[str, Any], env: dict[str, str], log: Path
) -> str:
    """Start one as printed, at a free port of loopback; its address."""
    words, port = [str(engine_bin / item["argv"][0]), *item["argv"][1:]], processes.free_port()
    words[words.index("-H") + 1] = processes.LOOPBACK
    words[words.index("-p") + 1] = str(port)
    process = hosts.enter_context(processes.running(words, env=env | item["env"], log=log))
    processes.wait_until(lambda: processes.listens(port), process, log, what="ggml-rpc-server", timeout_s=30)
    return f"{processes.LOOPBACK}:{port}"


def device_number(endpoint: str, log: str) -> int:
    """The number of the server's device among all: in the name of a buffer it is that on its own server."""
    found = re.search(rf"using device RPC(\d+) \({re.escape(endpoint)}\)", log)
    assert found is not None
    return int(found[1])


def same(devices: list[dict[str, Any]], log: str) -> None:
    """The log's weights and caches are those of the plan, to its last digit (0.01 MiB); so is the compute buffer, but
    for a load's whole hidden states.

    The plan's are those of the engine's own dry run, where ggml_backend_sched_reserve_size (ggml-backend.cpp) forgets
    that the first norm of a layer is to run on that layer's card (llama_context::graph_get_cb): it runs on the card
    before, and what crosses is the norm and the hidden states, each in four copies.
    """
    real = [dict.fromkeys(_KINDS.values(), 0.0) for _ in devices]
    for device, kind, size_mib in _BUFFER.findall(log):
        real[device_number(device, log)][_KINDS[kind]] += float(size_mib)
    states_mib = make_model.DENSE.embedding * UBATCH * 4 / MIB
    for place, (predicted, found) in enumerate(zip(devices, real, strict=True)):
        for kind, size_mib in found.items():
            less = predicted[kind] / MIB - size_mib
            if kind == "compute_bytes" and place:
                assert 0 <= round(less / states_mib) <= COPIES, (place, less)
                less -= round(less / states_mib) * states_mib
            assert abs(less) <= 0.011, (place, kind, predicted[kind], size_mib)
    assert all(found["weights_bytes"] for found in real)
