"""The llama-server that Ollama starts for a model: its command line, from the Modelfile and the environment.

The rules are those of llm/llama_server.go (startLlamaServer), server/sched.go and server/routes.go, Ollama 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plan_llama.engines import overrides as placing
from plan_llama.engines.modelfile import Modelfile
from plan_llama.engines.ollama_facts import DEFAULT_CONTEXT_FLOOR, OllamaFacts, facts
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.models.types import ModelSpec
from plan_llama.units import GIB, MIB

_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_GB = 10**9
_SHARE_PERCENT = 80  # of the free memory that a prediction may take
# Least micro-batches by context, what they add, and the share of memory that the prediction leaves them.
_BATCHES = ((32768, 2048, 2 * GIB, 60), (4096, 1024, 768 * MIB, 75), (0, 512, 0, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """The child's command line and what of it nobody asked for. `gpus` are the cards that it is given."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    context: int  # of one conversation
    parallel: int
    gpus: tuple[int, ...]
    automatic: tuple[str, ...]  # what was chosen for want of a value, in words
    capped: int | None  # the context that was asked for, where the model was trained for less
    one_slot: bool  # slots were asked for, and the architecture is served with one


def runner(model_file: Modelfile, env: Mapping[str, str], *, model: ModelSpec, machine: Machine) -> Runner:
    """What Ollama starts. `env` is the environment of `ollama serve`. The machine's free memory decides with it."""
    known = facts()
    automatic: list[str] = []
    parallel = max(1, _uint(env, "OLLAMA_NUM_PARALLEL", 1))
    one_slot = parallel > 1 and model.architecture in known.one_slot
    parallel = 1 if one_slot else parallel
    context, capped = _context(model_file, env, model, machine, known, automatic)
    predicted = predicted_bytes(model, context * parallel)
    layers = model_file.number("num_gpu")
    layers = -1 if layers is None else layers
    gpus, main_gpu = _cards(model_file, env, machine, predicted, layers)
    names = placing.device_names(machine.gpus)
    cards = [machine.gpus[i] for i in gpus]
    argv = ["llama-server", "--model", model.path or "model.gguf", "--no-webui", "--offline"]
    argv += ["-c", str(context * parallel), "-np", str(parallel)]
    argv += _projector(model, cards, layers)
    draft = model_file.number("draft_num_predict")
    if draft and draft > 0 and model.int_param("nextn_predict_layers", 0):
        argv += ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(draft)]
    if model.architecture in known.image_min_tokens_of:
        argv += ["--image-min-tokens", str(known.image_min_tokens)]
    argv += _load_mode(model_file, machine, cards, model, predicted, layers, automatic)
    if kv_type := _value(env, "OLLAMA_KV_CACHE_TYPE").lower():
        argv += ["--cache-type-k", kv_type, "--cache-type-v", kv_type]
    flash_attn = _flash_attn(env, cards)
    argv += ["--flash-attn", flash_attn]
    batch = model_file.number("num_batch")
    if batch is None:
        free = sum(gpu.free_bytes for gpu in cards)
        batch = automatic_batch(context * parallel, predicted, free, cards, flash_attn)
        automatic.append(f"num_batch {batch}")
    if batch > 0:
        argv += ["-b", str(batch), "-ub", str(batch)]
    if layers >= 0:
        argv += ["-ngl", str(layers)]
    if (threads := model_file.number("num_thread")) and threads > 0:
        argv += ["-t", str(threads)]
    if not gpus:
        argv += ["--device", "none"]  # it finds no library of a card
    elif len(gpus) < len(names):
        argv += ["--device", ",".join(names[i] for i in gpus)]  # the others are hidden from it
    if main_gpu is not None and gpus:
        argv += ["--split-mode", "none", "--main-gpu", str(main_gpu)]
    inherited = {name: value for name, value in env.items() if name.startswith(("LLAMA_", "GGML_"))}
    return Runner(
        argv=tuple(argv),
        env=inherited,
        context=context,
        parallel=parallel,
        gpus=tuple(gpus),
        automatic=tuple(automatic),
        capped=capped,
        one_slot=one_slot,
    )


def predicted_bytes(model: ModelSpec, tokens: int) -> int:
    """What Ollama expects a model to take: the file, and a cache by heads (PredictServerVRAM)."""
    heads = _numbers(model.hparams.get("attention.head_count"))
    kv_heads = _numbers(model.hparams.get("attention.head_count_kv"))
    most = max(heads, default=0)
    size = int(model.hparams.get("embedding_length") or 0) // most if most else 0
    layers = int(model.hparams.get("block_count") or 0)
    return model.file_bytes + 2 * layers * (min(kv_heads, default=0) or 1) * size * tokens * 2


def projector_on_cpu(model: ModelSpec, cards: Sequence[Gpu], layers: int) -> bool:
    """Whether Ollama keeps a projector from the cards (shouldDisableMMProjOffload)."""
    if model.projector is None:
        return False
    most = model.int_param("block_count") + 1
    need = sum(tensor.nbytes for tensor in model.projector.tensors) + GIB
    return layers == 0 or 0 < layers < most or any(gpu.free_bytes < need for gpu in cards)


def mapped_anyway(machine: Machine, *, cpu_only: bool) -> bool:
    """Whether a file is mapped where the Modelfile says nothing; pressure on the host's memory is left aside."""
    return not (cpu_only or (machine.os == "windows" and any(gpu.backend == "cuda" for gpu in machine.gpus)))


def reads_directly(machine: Machine, cards: Sequence[Gpu]) -> bool:
    """Integrated cards of CUDA and ROCm on Linux get --load-mode dio, whatever the Modelfile says."""
    return machine.os == "linux" and any(gpu.integrated and gpu.backend in ("cuda", "rocm") for gpu in cards)


def _context(
    model_file: Modelfile,
    env: Mapping[str, str],
    model: ModelSpec,
    machine: Machine,
    known: OllamaFacts,
    automatic: list[str],
) -> tuple[int, int | None]:
    """Tokens of one conversation, and what was asked for where that is more than the model was trained for."""
    context = model_file.number("num_ctx")
    if context is None:
        context = _uint(env, "OLLAMA_CONTEXT_LENGTH", 0)
    if not context:
        overhead = _uint(env, "OLLAMA_GPU_OVERHEAD", 0)
        context = known.automatic_context(max(0, sum(gpu.total_bytes - overhead for gpu in machine.gpus)))
        automatic.append(f"num_ctx {context}")
    asked = max(context, DEFAULT_CONTEXT_FLOOR)
    context = min(asked, model.context_train) if model.context_train else asked
    if any(text.startswith("num_ctx") for text in automatic):
        return context, None
    return context, asked if asked > context else None


def _cards(
    model_file: Modelfile, env: Mapping[str, str], machine: Machine, predicted: int, layers: int
) -> tuple[list[int], int | None]:
    """The cards that a model gets, and the one that gets all of it (selectLlamaServerPlacement)."""
    every = list(range(len(machine.gpus)))
    main_gpu = model_file.number("main_gpu")
    if layers == 0:
        return [], main_gpu
    if len(every) < 2:
        return every, main_gpu
    groups: dict[str, list[int]] = {}
    for index in every:
        groups.setdefault(machine.gpus[index].backend, []).append(index)

    def rank(index: int) -> tuple[bool, int]:
        return not machine.gpus[index].integrated, machine.gpus[index].free_bytes

    if main_gpu is not None:
        named = [group[main_gpu] for group in groups.values() if 0 <= main_gpu < len(group)]
        if named:
            return [max(named, key=rank)], 0
    elif not _switch(env, "OLLAMA_SCHED_SPREAD", False):
        enough = [i for i in every if predicted <= machine.gpus[i].free_bytes * _SHARE_PERCENT // 100]
        if enough:
            return [max(enough, key=rank)], 0
    best = max(
        groups.values(),
        key=lambda group: (
            any(not machine.gpus[i].integrated for i in group),
            sum(machine.gpus[i].free_bytes for i in group),
        ),
    )
    return best, main_gpu


def _load_mode(
    model_file: Modelfile,
    machine: Machine,
    cards: Sequence[Gpu],
    model: ModelSpec,
    predicted: int,
    layers: int,
    automatic: list[str],
) -> list[str]:
    if reads_directly(machine, cards):
        return ["--load-mode", "dio"]
    asked = model_file.switch("use_mmap")
    if asked is None:
        free = sum(gpu.free_bytes for gpu in cards)
        partial = any(gpu.backend == "metal" for gpu in cards) and (
            0 < layers <= model.int_param("block_count") or (layers < 0 and predicted > free > 0)
        )
        pressed = _host_pressure(machine, cards, model, predicted, free)
        if not mapped_anyway(machine, cpu_only=layers == 0 or not cards) or partial or pressed:
            asked = False
            automatic.append("use_mmap false")
    return ["--load-mode", "none"] if asked is False else []


def _host_pressure(
    machine: Machine, cards: Sequence[Gpu], model: ModelSpec, predicted: int, free: int
) -> bool:
    """Little memory for a file that is expected to fit on discrete cards (disableMmapForHostPressure)."""
    if machine.os != "linux" or not cards or any(gpu.integrated for gpu in cards):
        return False
    if not free or predicted > free * _SHARE_PERCENT // 100:
        return False
    spare = max(8 * _GB, machine.ram.total_bytes // 10)
    return machine.ram.available_bytes < model.file_bytes + spare


def _projector(model: ModelSpec, cards: Sequence[Gpu], layers: int) -> list[str]:
    if model.projector is None:
        return []
    argv = ["--mmproj", model.projector.path or "mmproj.gguf"]
    return [*argv, "--no-mmproj-offload"] if projector_on_cpu(model, cards, layers) else argv


def _flash_attn(env: Mapping[str, str], cards: Sequence[Gpu]) -> str:
    if _value(env, "OLLAMA_FLASH_ATTENTION"):
        return "on" if _switch(env, "OLLAMA_FLASH_ATTENTION", False) else "off"
    for gpu in cards:
        if gpu.backend == "cuda" and gpu.compute_capability:
            if float(gpu.compute_capability.split(".")[0]) < 6 or gpu.compute_capability == "7.2":
                return "off"
        elif gpu.backend == "sycl":
            return "off"
    return "auto"


def automatic_batch(tokens: int, predicted: int, free: int, cards: Sequence[Gpu], flash_attn: str) -> int:
    """num_batch where nobody says one (automaticGenerationBatch)."""
    cuda = [gpu for gpu in cards if gpu.backend == "cuda"]
    if flash_attn == "off" and cuda:
        return 256 if tokens > 4096 and any(gpu.free_bytes <= 8 * GIB for gpu in cuda) else 512
    for above, batch, extra, share in _BATCHES:
        if tokens <= above:
            continue
        threshold = free * _SHARE_PERCENT // 100
        fits = predicted <= threshold and predicted <= free * share // 100 and extra <= threshold - predicted
        if batch == 512 or not predicted or not free or fits:
            return batch
    return 512


def _numbers(value: object) -> list[int]:
    if isinstance(value, list | tuple):
        return [int(item) for item in value]
    return [value] if isinstance(value, int) else []


def _value(env: Mapping[str, str], name: str) -> str:
    """A variable without the spaces and quotes around it (envconfig.Var)."""
    return env.get(name, "").strip().strip("\"'")


def _uint(env: Mapping[str, str], name: str, default: int) -> int:
    text = _value(env, name)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else default


def _switch(env: Mapping[str, str], name: str, default: bool) -> bool:
    """A switch; what is no truth value counts as true."""
    text = _value(env, name)
    return text not in _FALSE if text else default
