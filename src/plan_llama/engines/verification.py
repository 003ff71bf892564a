"""Predicted beside real: the buffers of one program, line by line, and what the real numbers make of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from plan_llama.engines.dry_run import RealBytes
from plan_llama.memory.types import Buffers, DeviceBytes
from plan_llama.units import GIB, MIB

Part = Literal["model", "context", "compute", "total"]
LineVerdict = Literal["same", "within", "upper-bound", "above", "below", "not-checked"]

HOST = "Host"
_ABOVE = 0.05  # how far a prediction may lie above the real need, and below it
_BELOW = 0.02
_MODEL_RATIO = 0.001
_SLACK_BYTES = 16 * MIB
_SMALL_BYTES = 1 * MIB  # for model and context, and for everything on a device that holds little
_LITTLE_BYTES = 1 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One part of one device, as predicted for the program that ran; `planned_bytes` is the plan's for llama-server.

    `real_bytes` is what was printed: whole MiB, cut off, or rounded; None where nothing was. `difference_bytes` is
    predicted less real, beyond what was cut off or rounded; "below" is the unsafe side.
    """

    device: str  # gpu0, …, host
    engine_device: str | None
    part: Part
    predicted_bytes: int
    planned_bytes: int
    real_bytes: int | None
    difference_bytes: int | None
    verdict: LineVerdict


def compare(
    predicted: Buffers,
    planned: Buffers,
    real: Mapping[str, RealBytes],
    names: Sequence[str] | None,
    *,
    upper_bound: bool,
) -> tuple[Line, ...]:
    """Four lines for each device that holds anything, and for the host. `names` are the engine's, by GPU.

    None: the whole model was dry-run on the host, and what the plan has on GPUs is not checked. `upper_bound`: the
    compute buffers of this architecture are not described, and may lie above.
    """
    lines: list[Line] = []
    for index, plan in enumerate(planned.devices):
        name = names[index] if names is not None else None
        said = plan if names is None else predicted.devices[index]
        found = real.get(name) if name else None
        if found or said.total_bytes or plan.total_bytes:
            lines += _device(f"gpu{index}", name, (said, plan), found, upper_bound=upper_bound)
    host = (predicted.host, planned.host)
    lines += _device("host", HOST, host, real.get(HOST), upper_bound=upper_bound)
    return tuple(lines)


def _device(
    device: str,
    name: str | None,
    said: tuple[DeviceBytes, DeviceBytes],
    found: RealBytes | None,
    *,
    upper_bound: bool,
) -> Iterator[Line]:
    predicted, planned = (_parts(item, fused=_fuses(name)) for item in said)
    real: Mapping[Part, int | None] = dict.fromkeys(predicted) if found is None else _real_parts(found)
    total = real["total"]
    for part, ours in predicted.items():
        theirs = real[part]
        off = None
        if theirs is not None and found is not None:
            parts = 3 if part == "total" else 1
            off = beyond(ours, theirs, parts * found.above_bytes, parts * found.below_bytes)
        verdict: LineVerdict = "not-checked"
        if off is not None and theirs is not None:
            verdict = _verdict(part, off, theirs, total or theirs, upper_bound=upper_bound)
        yield Line(
            device=device,
            engine_device=name,
            part=part,
            predicted_bytes=ours,
            planned_bytes=planned[part],
            real_bytes=theirs,
            difference_bytes=off,
            verdict=verdict,
        )


def _parts(item: DeviceBytes, *, fused: bool) -> dict[Part, int]:
    more = item.fused_bytes if fused else 0
    return {
        "model": item.weights_bytes,
        "context": item.context_bytes,
        "compute": item.compute_bytes + more,
        "total": item.total_bytes + more,
    }


def _real_parts(item: RealBytes) -> dict[Part, int | None]:
    return {
        "model": item.model_bytes,
        "context": item.context_bytes,
        "compute": item.compute_bytes,
        "total": None
        if item.model_bytes is None
        else item.model_bytes + item.context_bytes + item.compute_bytes,
    }


def beyond(ours: int, printed: int, above: int, below: int = 0) -> int:
    """How far a prediction is from anything that could have been printed so; 0 where it could have been."""
    if ours < printed - below:
        return ours - (printed - below)
    return max(0, ours - (printed + above))


def _verdict(part: Part, off: int, real: int, device_total: int, *, upper_bound: bool) -> LineVerdict:
    if off == 0:
        return "same"
    little = device_total < _LITTLE_BYTES
    slack = _SMALL_BYTES if part in ("model", "context") or little else _SLACK_BYTES
    ratio = (_MODEL_RATIO, _MODEL_RATIO) if part in ("model", "context") else (_ABOVE, _BELOW)
    if off > 0:
        if off <= max(slack, real * ratio[0]):
            return "within"
        return "upper-bound" if upper_bound and part in ("compute", "total") else "above"
    return "within" if -off <= max(slack, real * ratio[1]) else "below"


def corrected(
    planned: Buffers, predicted: Buffers, real: Mapping[str, RealBytes], names: Sequence[str]
) -> Buffers:
    """The plan's buffers moved by what the prediction for the program that was run was off.

    The plan is for llama-server, which reserves fewer output rows than llama-fit-params: its real numbers are its own
    predicted ones plus the error that the same prediction made there. Devices that were not checked stay as predicted.
    """
    return replace(
        planned,
        devices=tuple(
            _moved(plan, said, real.get(name), fused=_fuses(name))
            for plan, said, name in zip(planned.devices, predicted.devices, names, strict=True)
        ),
        host=_moved(planned.host, predicted.host, real.get(HOST), fused=False),
    )


def _fuses(name: str | None) -> bool:
    """Whether the engine's own device holds what fused kernels read: a card of its CUDA or HIP backend, none behind
    RPC. It is then in the compute buffer that is printed.
    """
    return name is not None and name.startswith(("CUDA", "ROCm"))


def _moved(plan: DeviceBytes, said: DeviceBytes, found: RealBytes | None, *, fused: bool) -> DeviceBytes:
    if found is None:
        return plan

    def moved(planned: int, ours: int, theirs: int | None) -> int:
        off = 0 if theirs is None else beyond(ours, theirs, found.above_bytes, found.below_bytes)
        return max(0, planned - off)

    computing = said.compute_bytes + (said.fused_bytes if fused else 0)
    return replace(
        plan,
        weights_bytes=moved(plan.weights_bytes, said.weights_bytes, found.model_bytes),
        context_bytes=moved(plan.context_bytes, said.context_bytes, found.context_bytes),
        compute_bytes=moved(plan.compute_bytes, computing, found.compute_bytes),
    )
