"""--nodes and --node-address: which machines work together, and llama.cpp's RPC servers on them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from plan_llama.cli.engine_choice import Writer
from plan_llama.cli.options import EngineOptions
from plan_llama.engines import rpc
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.nodes import Nodes
from plan_llama.errors import UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.models.types import ModelSpec
from plan_llama.solver.search import Task
from plan_llama.solver.types import Plan, Wishes

_ADDRESS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")
_EVERY = ("0.0.0.0", "::")  # noqa: S104 - they are refused


def nodes_of(engine: EngineOptions) -> Nodes:
    """The machines that the options name. Raises UsageError for what cannot be one machine's address."""
    addresses = tuple(engine.node_address or ())
    count = engine.nodes if engine.nodes > 1 else max(1, len(addresses))
    for address in addresses:
        if not _ADDRESS.fullmatch(address) or address in _EVERY:
            raise UsageError(
                f"--node-address {address!r}: expected the address of one machine, such as 10.0.0.1"
            )
    if addresses and len(addresses) != count:
        raise UsageError(
            f"{len(addresses)} addresses (--node-address) for {count} machines (--nodes)", hint="one for each"
        )
    return Nodes(count=count, addresses=addresses)


def private_nodes(engine: EngineOptions) -> Nodes:
    """The same for RPC servers, which ask nobody who he is. Raises UsageError for anything but private addresses."""
    nodes = nodes_of(engine)
    for address in nodes.addresses:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            found = None
        if not isinstance(found, ipaddress.IPv4Address) or not found.is_private or found.is_loopback:
            raise UsageError(
                f"--node-address {address}: an RPC server has no authentication and is bound to a private IPv4 address",
                hint="such as 10.0.0.2 or 192.168.1.2, behind a firewall or a tunnel",
            )
    return nodes


def joined(machine: Machine, nodes: Nodes) -> Machine:
    """The first machine with the cards of the others in front of its own, in llama.cpp's order of devices.

    Raises UsageError for machines whose cards cannot be lent.
    """
    if not machine.gpus or machine.unified:
        have = "has no GPU" if not machine.gpus else "shares its memory with its GPU"
        raise UsageError(f"--nodes: the machine {have}, and RPC is planned for discrete GPUs")
    lent = tuple(
        replace(gpu, name=f"{gpu.name} on {nodes.name(rank)}")
        for rank in range(1, nodes.count)
        for gpu in machine.gpus
    )
    return replace(machine, gpus=(*lent, *machine.gpus))


@dataclass(frozen=True, slots=True)
class RpcServers:
    """llama.cpp on the first machine, with RPC servers on the others."""

    inner: Writer
    nodes: Nodes

    def wishes(self, wanted: Wishes, spec: ModelSpec, machine: Machine, /) -> Wishes:
        """As on one machine, without drafting: what its steps cost over a network is not known."""
        return replace(self.inner.wishes(wanted, spec, machine), can_draft=False)

    def command(self, task: Task, plan: Plan) -> tuple[LaunchCommand, list[Finding]]:
        """The server's command and that of every RPC server."""
        made, said = self.inner.command(task, plan)
        local = len(task.machine.gpus) // self.nodes.count
        return rpc.command(made, task.machine.gpus, self.nodes, local), [*said, *rpc.findings(self.nodes)]
