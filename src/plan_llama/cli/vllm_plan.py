"""`--engine vllm`: the checkpoint, the cut and the cache that fit the machine, and the commands for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plan_llama.cli import vllm_json, vllm_render
from plan_llama.cli.nodes import nodes_of
from plan_llama.cli.options import EngineOptions, HardwareOptions, ModelOptions, OutputOptions, WishOptions
from plan_llama.cli.said import in_order, machine_notes
from plan_llama.cli.screen import Screen, print_json
from plan_llama.cli.wishes import hardware_choice, wishes
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.nodes import Nodes
from plan_llama.engines.vllm import command as writer
from plan_llama.engines.vllm.flags import VERSION
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, InputError, ModelError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.probe import measured
from plan_llama.hardware.types import Machine
from plan_llama.memory.vllm.weights import Ranks, weights_bytes
from plan_llama.models.checkpoint_source import checkpoints
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.models.locate import download_folder
from plan_llama.models.types import Download
from plan_llama.solver.types import Wishes
from plan_llama.solver.vllm.search import VllmPlan, VllmTask, solve
from plan_llama.units import publisher_gb

KV_TYPES = ("auto", "f16", "bf16", "fp8", "fp8_e4m3", "nvfp4_ds_mla")
PINS = {
    "tensor_parallel": "a number",
    "pipeline_parallel": "a number",
    "data_parallel": "a number",
    "batch": "a number",
    "context": "a number",
    "parallel": "a number",
    "kv_type": "a cache type",
}


def run(
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
    *,
    write: Path | None,
    force: bool,
) -> int:
    """Plans, prints, writes. Returns 0 for a plan that starts, 3 for one that does not."""
    wanted = wishes(wish_options, kv_types=KV_TYPES, takes=PINS)
    nodes = nodes_of(engine)
    check_version(engine)
    machine = measured(resolve(hardware_choice(hardware), engine_path=None))
    task, plan, made, said = make(model, machine, wanted, nodes)
    usable = plan.chosen.verdict in ("fits", "tight")
    written: list[Path] = []
    if write is not None:
        if not usable or made is None:
            raise InputError(
                f"--write: there is nothing to launch, the verdict is {plan.chosen.verdict}",
                hint="see what would make it fit",
            )
        from plan_llama.cli.vllm_files import write_files

        written = write_files(write, made, force=force)
    if output.json:
        answer = vllm_json.answer(
            checkpoint=task.checkpoint,
            machine=machine,
            judged=plan.chosen,
            verdict=plan.chosen.verdict,
            command=made,
            findings=said,
            conversations=task.conversations,
        )
        answer |= {
            "ladder": [],
            "alternatives": [{"what": item.what, "effect": item.effect} for item in plan.alternatives],
            "trace": list(plan.trace),
        }
        if written:
            answer["written"] = [str(path) for path in written]
        print_json(answer)
    else:
        screen = Screen()
        text = vllm_render.page(
            screen,
            task.checkpoint,
            machine,
            plan.chosen,
            task.request,
            made=made,
            said=said,
            alternatives=plan.alternatives,
            trace=plan.trace if output.explain else (),
        )
        text += "".join(f"\nwritten: {path}\n" for path in written)
        screen.write(text)
    return EXIT_OK if usable else EXIT_NO_FIT


def check_version(engine: EngineOptions) -> None:
    """Raises UsageError for a version whose arguments are not known."""
    asked = (engine.engine_build or VERSION).removeprefix("v")
    if asked != VERSION and not asked.startswith(f"{VERSION}."):
        raise UsageError(f"--engine-build {engine.engine_build}: vLLM {VERSION} is the version it knows")


def make(
    model: ModelOptions, machine: Machine, wanted: Wishes, nodes: Nodes
) -> tuple[VllmTask, VllmPlan, LaunchCommand | None, list[Finding]]:
    """The plan of the best checkpoint that fits, its command, and all that is to be said."""
    assert model.model is not None  # noqa: S101 - the command checked it
    open_to = checkpoints(model.model, model.quant)
    tried: list[str] = []
    made_plans: list[tuple[VllmTask, VllmPlan]] = []
    for item in open_to:
        sized = with_size(item)
        if wanted.context == "max" and not sized.spec.context_train:
            raise ModelError(
                f"{sized.spec.name}: its config does not say its context", hint="give --ctx a number"
            )
        task = VllmTask(checkpoint=sized, machine=machine, wishes=wanted, nodes=nodes.count)
        plan = solve(task)
        made_plans.append((task, plan))
        if _rank(plan) == (0, False):
            break
        tried.append(f"{sized.spec.quant} ({publisher_gb(sized.spec.file_bytes)}, {plan.chosen.verdict})")
    task, plan = min(made_plans, key=lambda pair: _rank(pair[1]))
    said = [*plan.findings, *_about_model(task.checkpoint, open_to, tried), *machine_notes(machine)]
    usable = plan.chosen.verdict in ("fits", "tight")
    made = None
    if usable:
        made = writer.command(plan.chosen.setup, machine, plan.machine.gpus, nodes=nodes)
    if nodes.count > 1:
        said += _about_nodes(nodes)
    return task, plan, made, in_order(said)


def _rank(plan: VllmPlan) -> tuple[int, bool]:
    """How good a plan is, before its checkpoint is looked at: what fits without the host's memory is best."""
    order = ("fits", "tight", "pages-from-disk", "does-not-fit", "invalid")
    return order.index(plan.chosen.verdict), plan.chosen.setup.start.offload_bytes > 0


def with_size(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the size of its files, as listed or worked out, and how to get what is not here."""
    size = checkpoint.size_bytes or weights_bytes(checkpoint, Ranks())
    spec = replace(checkpoint.spec, file_bytes=size)
    if not checkpoint.local:
        folder = download_folder(checkpoint.location)
        words: tuple[str, ...] = ("hf", "download", checkpoint.location)
        words += ("--revision", checkpoint.revision) if checkpoint.revision else ()
        spec = replace(
            spec,
            download=Download(
                repo=checkpoint.location,
                quant=spec.quant,
                files=(),
                size_bytes=size,
                argv=words,
                path=str(folder),
                url=f"https://huggingface.co/{checkpoint.location}",
            ),
        )
    return replace(checkpoint, spec=spec)


def _about_model(checkpoint: Checkpoint, open_to: tuple[Checkpoint, ...], tried: list[str]) -> list[Finding]:
    spec = checkpoint.spec
    said = []
    if checkpoint.note:
        said.append(Finding(id="model-origin", severity="note", text=checkpoint.note))
    if spec.data_note:
        said.append(Finding(id="model-data", severity="warning", text=f"{spec.path}: {spec.data_note}"))
    if len(open_to) > 1 and tried:
        text = f"{spec.quant} is the checkpoint that fits best here; tried before it: {', '.join(tried[-4:])}"
        said.append(Finding(id="quant-chosen", severity="note", text=text, fix="--quant names another"))
    if checkpoint.multimodal:
        said.append(
            Finding(
                id="text-only",
                severity="note",
                text="planned for text: --language-model-only leaves the model's other towers out",
            )
        )
    said.append(
        Finding(
            id="weights-modelled",
            severity="note",
            text=f"the weights ({publisher_gb(spec.file_bytes)}) are worked out from the shapes and the format",
        )
    )
    return said if checkpoint.size_bytes is None else said[:-1]


def _about_nodes(nodes: Nodes) -> list[Finding]:
    said = [
        Finding(
            id="vllm-nodes-network",
            severity="warning",
            text="every node needs the same vLLM, the same model files and open ports between the nodes only: NCCL and "
            "the control connections have neither a key nor encryption",
            fix="a private network, with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME set to its interface",
        )
    ]
    if not nodes.addresses:
        said.append(
            Finding(
                id="node-address-missing",
                severity="warning",
                text=f"{nodes.head} in the commands stands for the first node's address",
                fix="--node-address, once for each node, writes it",
            )
        )
    return said
