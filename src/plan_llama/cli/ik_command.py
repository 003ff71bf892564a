"""A plan for ik_llama.cpp: llama.cpp's placement with more kept free, in the arguments that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from plan_llama.engines import ik_llama, llama_server, memory_rules, older_builds
from plan_llama.engines.commandline import parse
from plan_llama.engines.ik_reading import latent
from plan_llama.engines.launch import LaunchCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import gpu_margin_bytes
from plan_llama.models.types import ModelSpec
from plan_llama.solver.profiles import beyond
from plan_llama.solver.search import UBATCHES, Task
from plan_llama.solver.types import Plan, Wishes
from plan_llama.units import gib


@dataclass(frozen=True, slots=True)
class IkLlama:
    """ik_llama.cpp, of the build whose arguments are known."""

    def wishes(self, wanted: Wishes, spec: ModelSpec, machine: Machine, /) -> Wishes:
        """Slots with a share of the context each, its memory, and room for what of it is not modelled."""
        margin = wanted.margin_bytes
        if machine.gpus and not machine.unified:
            usual = max(gpu_margin_bytes(machine, gpu, beyond(), margin) for gpu in machine.gpus)
            margin = usual + reserve_bytes(spec)
        return replace(
            wanted,
            engine="ik_llama.cpp",
            older=memory_rules.of_engine(ik_llama.ENGINE, None),
            slots_apart=True,
            margin_bytes=margin,
        )

    def command(self, task: Task, plan: Plan) -> tuple[LaunchCommand, list[Finding]]:
        """Its llama-server."""
        return make(task, plan)


def reserve_bytes(spec: ModelSpec) -> int:
    """What stays free on every card beside the margin."""
    notes = ik_llama.notes()
    joined = [tensor for tensor in spec.tensors if tensor.name.endswith(".attn_kv_b.weight")]
    # made from it: V as it is, K in q8_0 at most
    made = sum(tensor.nbytes + tensor.elements * 34 // 32 for tensor in joined)
    state = spec.int_param("embedding_length", 0) * max(UBATCHES) * 4
    kept = notes.beyond_bytes + state + notes.kernels_bytes
    return kept + (made + notes.expanded_bytes if joined else 0)


def make(task: Task, plan: Plan, *, correcting: bool = False) -> tuple[LaunchCommand, list[Finding]]:
    """The command and what there is to say of it. `correcting` leaves out what a given command says itself."""
    spec, machine = task.table.spec, task.machine
    table = ik_llama.flags()
    path = spec.path or (spec.download.path if spec.download else None) or f"{spec.name}.gguf"
    installed = None
    if not machine.simulated:
        installed = next((item for item in machine.engines if item.engine == ik_llama.ENGINE), None)
    written = llama_server.command(
        plan.chosen.settings,
        model=spec,
        machine=machine,
        model_path=path,
        executable=installed.path if installed else "llama-server",
        sampling=spec.sampling,
        mmproj_path=spec.projector.path if spec.projector and not correcting else None,
        extra=("-mla", "3") if latent(spec) and not correcting else (),
    )
    # -ncmoe counts from the last layer in this engine, and --fit takes no value: a pattern, and its default
    known = [line for line in table.listed("llama-server") if not line.startswith(("-ncmoe", "--fit"))]
    made, said = older_builds.adapt(written, known, table.build)
    refused = parse(made.argv, table=table).refused
    assert not refused, refused  # noqa: S101 - adapt writes what the table lists
    return replace(made, engine=ik_llama.ENGINE), said if correcting else [*said, *findings(spec)]


def findings(spec: ModelSpec) -> Iterator[Finding]:
    """How sure the numbers are."""
    build = older_builds.named(ik_llama.flags().build)
    yield Finding(
        id="memory-of-other-engine",
        severity="warning",
        text="buffers are those of ik_llama.cpp as far as it was measured, without a GPU: what its CUDA kernels take "
        f"beside them was not, so a plan keeps {gib(reserve_bytes(spec))} more free on every card",
        fix="--dry-run --no-mmap behind its command prints what it reserves (mapped, it counts weights twice)",
    )
    yield Finding(
        id="engine-arguments",
        severity="note",
        text=f"its arguments are those of {build}, where fused experts (-fmoe of older builds) and flash attention are "
        "on by default. -rtr repacks the experts on the CPU while it loads, without mapping the file; -ser K,T uses "
        "fewer experts than the model was made with",
    )
