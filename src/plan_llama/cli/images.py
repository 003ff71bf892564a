"""What a plan says of images: which projector it has, what it costs, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from plan_llama.cli.options import ModelOptions
from plan_llama.errors import ModelError, UsageError
from plan_llama.findings import Finding
from plan_llama.memory.footprint import Footprint
from plan_llama.memory.projector import Projector, ProjectorUse
from plan_llama.memory.scheduler import CPU_KIND, CUDA_KIND, BackendKind
from plan_llama.memory.types import HOST, Settings
from plan_llama.models import catalog_models, projectors
from plan_llama.models.types import ModelSpec
from plan_llama.units import gib, publisher_gb


def with_projector(spec: ModelSpec, options: ModelOptions) -> ModelSpec:
    """The model with the projector that --mmproj names, its own, or none. Raises ModelError for an unreadable one."""
    if options.mmproj is not None and options.no_mmproj:
        raise UsageError("--mmproj and --no-mmproj exclude each other", hint="give one of them")
    if options.no_mmproj:
        return replace(spec, projector=None)
    if options.mmproj is not None:
        return replace(spec, projector=projectors.load(options.mmproj))
    if spec.projector is None and (options.model or "").lower().startswith("hf:"):
        return _with_repository(spec, options.model or "")
    return spec


def _with_repository(spec: ModelSpec, text: str) -> ModelSpec:
    """The projector beside the file, else the repository's own, as -hf would load it."""
    from plan_llama.models import remote

    try:
        found = projectors.in_folder_of(spec) or remote.projector_of(text, spec)
    except ModelError as error:
        note = f"its projector cannot be read, and images are not counted ({error.message})"
        return replace(spec, origin_note=f"{spec.origin_note}; {note}" if spec.origin_note else note)
    return replace(spec, projector=found)


def findings(spec: ModelSpec, settings: Settings, used: Footprint, *, wanted: bool) -> Iterator[Finding]:
    """What is to be known about images beside the numbers."""
    if used.projector is None or spec.projector is None:
        if wanted and _sees(spec):
            yield Finding(
                id="projector-missing",
                severity="note",
                text="this model reads images, but no projector (mmproj file) lies beside it: text only",
                fix="--mmproj FILE names one",
            )
        return
    yield Finding(
        id="projector-counted",
        severity="note",
        text=_cost(spec.projector, used.projector, used),
        fix="--no-mmproj plans for text only"
        + ("; --pin image-max-tokens=1024 makes images smaller" if _shrinks(used.projector) else ""),
    )
    if used.projector.images is None:
        yield Finding(
            id="projector-estimated",
            severity="warning",
            text=f"the graph of a projector of type {Projector(spec.projector).kind or 'unknown'} is not modelled: its "
            "compute buffer is an upper bound for plain towers, and audio is not counted",
            fix="leave a larger --margin, or look at the first start",
        )
    if settings.flash_attn and not used.projector.flash_attn:
        yield Finding(
            id="projector-without-flash-attn",
            severity="note",
            text="CUDA has no flash attention for this tower's heads: with -fa on, llama.cpp leaves its attention to "
            "the CPU, which is slow",
            fix="-fa auto in the command keeps it on the card, in the memory that is counted here",
        )
    images, least = used.projector.images, settings.image_min_tokens
    if images is not None and images.dynamic and least is not None and least > images.most_tokens:
        yield Finding(
            id="projector-limits",
            severity="error",
            text=f"--image-min-tokens {least}: llama.cpp does not load a projector whose images have at most "
            f"{images.most_tokens:,} tokens with it",
            fix="a smaller one, or a larger --image-max-tokens",
        )
    if used.projector.device == HOST and used.devices:
        yield Finding(
            id="projector-on-cpu",
            severity="note",
            text="the CPU reads the images, which takes it seconds for each",
            fix=""
            if settings.mmproj_offload
            else "a GPU does it without --no-mmproj-offload, where it has room",
        )


def _sees(spec: ModelSpec) -> bool:
    return bool(spec.catalog_id) and catalog_models.model(spec.catalog_id or "").projector is not None


def _shrinks(use: ProjectorUse) -> bool:
    return use.images is not None and use.images.dynamic and use.images.tokens > 1024


def _cost(spec: ModelSpec, use: ProjectorUse, used: Footprint) -> str:
    """What images take, and where."""
    where = "the CPU" if use.device == HOST else f"gpu{use.device}" if len(used.pools) > 1 else "the GPU"
    parts = f"weights {gib(use.weights_bytes)}, compute {gib(use.largest.device_bytes)}"
    text = f"images are counted: their projector ({spec.quant}, {publisher_gb(spec.file_bytes)}) takes "
    text += f"{gib(use.device_bytes)} on {where} ({parts})"
    if use.device != HOST and use.largest.host_bytes:
        text += f" and {gib(use.largest.host_bytes)} of system memory"
    if use.images is not None:
        kind = "up to " if use.images.dynamic else ""
        text += f"; an image is {kind}{use.images.tokens:,} tokens"
        if use.largest.device_bytes > use.warmup.device_bytes:
            text += (
                f", and the first large one makes the compute buffer grow from the {gib(use.warmup.device_bytes)} "
                "of the start"
            )
    return text


def facts(spec: ModelSpec) -> dict[str, Any]:
    """The projector's file, for the JSON."""
    from plan_llama.cli.plan_json import download

    return {
        "type": Projector(spec).kind or None,
        "quant": spec.quant,
        "file_bytes": spec.file_bytes,
        "parameters": spec.parameters,
        "source": spec.source,
        "path": spec.path,
        "present": spec.present,
        "download": download(spec.download),
    }


def use_json(use: ProjectorUse) -> dict[str, Any]:
    """What the projector takes, for the JSON."""
    images = use.images
    return {
        "device": "host" if use.device == HOST else use.device,
        "weights_bytes": use.weights_bytes,
        "compute_bytes": use.largest.device_bytes,
        "warmup_compute_bytes": use.warmup.device_bytes,
        "host_compute_bytes": use.largest.host_bytes,
        "tokens_per_image": images.tokens if images else None,
        "fewest_tokens_per_image": images.fewest_tokens if images else None,
        "largest_image": [images.largest.width, images.largest.height] if images else None,
    }


def render_inspect(spec: ModelSpec) -> str:
    """What a projector's file holds and takes, for people."""
    projector = Projector(spec)
    params = spec.hparams
    rows = [
        ("file", spec.path or "none"),
        ("projector", f"{projector.kind or 'unknown type'}, for --mmproj"),
        ("quant", spec.quant),
        ("size", f"{publisher_gb(spec.file_bytes)} ({spec.file_bytes:,} bytes)"),
        ("parameters", f"{spec.parameters / 1e9:.3f} B in {len(spec.tensors):,} tensors"),
    ]
    if params.get("has_vision_encoder"):
        rows.append(("tower", _tower(spec)))
    if params.get("has_audio_encoder"):
        rows.append(("sound", "an audio tower, whose compute buffer is not modelled"))
    rows += [(f"takes on {place}", takes(spec, place)) for place in ("a GPU", "the CPU")]
    if (images := _alone(projector, CUDA_KIND).images) is not None:
        many = f"{images.fewest_tokens:,} to {images.tokens:,}" if images.dynamic else f"{images.tokens:,}"
        largest = f"{images.largest.width} x {images.largest.height} pixels"
        rows.append(("tokens per image", f"{many}; the largest is {largest}"))
    if spec.data_note:
        rows.append(("data", f"NOT ALL THERE: {spec.data_note}"))
    lines = [spec.name, *(f"  {label:<18}{value}" for label, value in rows)]
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in "\n".join(lines)) + "\n"


def inspect_json(spec: ModelSpec) -> dict[str, Any]:
    """The same for programs."""
    projector = Projector(spec)
    return {
        **facts(spec),
        "name": spec.name,
        "tensors": len(spec.tensors),
        "data_note": spec.data_note,
        "gpu": use_json(_alone(projector, CUDA_KIND)),
        "cpu": use_json(_alone(projector, CPU_KIND)),
        "hparams": {k: list(v) if isinstance(v, tuple) else v for k, v in spec.hparams.items()},
    }


def _alone(projector: Projector, backend: BackendKind) -> ProjectorUse:
    settings = Settings(context=4096, mmproj=True, mmproj_offload=backend != CPU_KIND)
    return projector.use(settings, [CUDA_KIND])


def _tower(spec: ModelSpec) -> str:
    number = spec.int_param
    return (
        f"{number('vision.block_count', 0)} layers of {number('vision.embedding_length', 0):,} with "
        f"{number('vision.attention.head_count', 0)} heads, patches of {number('vision.patch_size', 0)} pixels"
    )


def takes(spec: ModelSpec, place: str) -> str:
    """What a projector takes on "a GPU" or "the CPU", for people."""
    use = _alone(Projector(spec), CUDA_KIND if place == "a GPU" else CPU_KIND)
    grown, start = gib(use.largest.device_bytes), gib(use.warmup.device_bytes)
    text = f"weights {gib(use.weights_bytes)}, compute {start} at the start"
    if use.images is None:
        return f"weights {gib(use.weights_bytes)}, compute up to {grown} (an upper bound for plain towers)"
    if grown != start:
        text += f" and {grown} after the largest image"
    return text + (f"; {gib(use.largest.host_bytes)} of system memory" if use.largest.host_bytes else "")
