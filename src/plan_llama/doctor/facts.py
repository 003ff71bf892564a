"""Lines of a healthy log, made into facts: llama.cpp and what wraps it, Ollama, vLLM.

The wording is that of llama.cpp b11434 and, where it differed, of the builds before it; what stands before the
colon was renamed often and is left out. A fact that is said twice (by the pass that fits, by the load) has its later
value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from plan_llama.doctor.evidence import MIB, Buffer, Device, Hit, Start
from plan_llama.doctor.patterns import number

Handler = Callable[[Start, Hit], None]


@dataclass(frozen=True, slots=True)
class FactPattern:
    """What to do with a line. `marks`: "start" begins a process, "load" a model; "begun", "served", "ended" follow."""

    template: str
    handler: Handler
    marks: str = ""


def _number(name: str, hole: str = "a", scale: float = 1) -> Handler:
    def handler(start: Start, hit: Hit) -> None:
        value = number(hit.values[hole]) * scale
        start.set(name, int(value) if value == int(value) else value, hit.line)

    return handler


def _text(name: str, hole: str = "x") -> Handler:
    return lambda start, hit: start.set(name, hit.values[hole].strip(), hit.line)


def _flag(name: str, value: bool | str) -> Handler:
    return lambda start, hit: start.set(name, value, hit.line)


def _engine(name: str) -> Handler:
    def handler(start: Start, hit: Hit) -> None:
        start.set("engine", name, hit.line)
        if "a" in hit.values:
            start.set("build", int(number(hit.values["a"])), hit.line)

    return handler


def _likely(name: str) -> Handler:
    """What only one engine says, where no line names it."""

    def handler(start: Start, hit: Hit) -> None:
        if "engine" not in start.facts:
            start.set("engine", name, hit.line)

    return handler


def _version(engine: str) -> Handler:
    def handler(start: Start, hit: Hit) -> None:
        start.set("engine", engine, hit.line)
        start.set("version", hit.values["x"].strip(), hit.line)

    return handler


def _begun(start: Start, hit: Hit) -> None:
    start.begun = start.begun or hit.line


def _loading(start: Start, hit: Hit) -> None:
    _begun(start, hit)
    path = hit.values["x"].strip().strip("'\"")
    if path == start.get("draft_path"):  # beside the model's own buffers
        return
    start.buffers.clear()
    start.set("model_path", path, hit.line)
    if "engine" not in start.facts:
        start.set("engine", "llama.cpp", hit.line)


def _served(start: Start, hit: Hit) -> None:
    start.served = start.served or hit.line
    start.set("served", True, hit.line)


def _up(start: Start, hit: Hit) -> None:
    _served(start, hit)
    start.up = hit.line


def _ended(start: Start, hit: Hit) -> None:
    start.ended = hit.line
    start.set("ended", True, hit.line)


def _new_context(start: Start, _hit: Hit) -> None:
    """One that drafts has buffers beside those of the model's own."""
    start.contexts += 1


def _buffer(kind: str) -> Handler:
    def handler(start: Start, hit: Hit) -> None:
        name, where, now = _device_name(hit.values["x"]), _endpoint(hit.values["x"]), start.contexts
        if kind == "compute":  # a retry, or a later reservation, replaces it
            same = name, where, kind, now
            start.buffers[:] = [
                item
                for item in start.buffers
                if (item.device, item.endpoint, item.kind, item.context) != same
            ]
        size = int(number(hit.values["a"]) * MIB)
        start.buffers.append(Buffer(name, kind, size, hit.line, now, where))

    return handler


def _sized(kind: str) -> Handler:
    """Ollama's own engine: `msg="model weights" device=CUDA0 size="16.2 GiB"`; the CPU's are no mapped file."""

    def handler(start: Start, hit: Hit) -> None:
        unit = {"K": 1024, "M": MIB, "G": 1024 * MIB}.get(hit.values["y"][:1], 1)
        size = int(number(hit.values["a"]) * unit)
        name = hit.values["x"].strip()
        start.buffers[:] = [item for item in start.buffers if (item.device, item.kind) != (name, kind)]
        start.buffers.append(Buffer(name, kind, size, hit.line))

    return handler


def _device_name(text: str) -> str:
    """`load_tensors: RPC0[127.0.0.1:50999]` and `llm_load_tensors:        CPU` are RPC0 and CPU."""
    return re.split(r"[\[(:]", text.strip().split()[-1])[0]


def _endpoint(text: str) -> str:
    found = re.search(r"\[(.*)\]$", text.strip())
    return found[1] if found else ""


def _device(start: Start, hit: Hit) -> None:
    """`using device CUDA0 (NVIDIA GeForce RTX 3090) (0000:01:00.0) - 23872 MiB free`."""
    name = hit.values["x"].strip()
    device = start.devices.setdefault(name, Device(name))
    device.description = hit.values["y"].strip() or device.description
    device.free_bytes = int(number(hit.values["a"]) * MIB)
    device.line = hit.line


def _device_info(start: Start, hit: Hit) -> None:
    """`  - CUDA0   : NVIDIA GeForce RTX 3090 (24575 MiB, 23872 MiB free)`; CPU is the system's memory."""
    name = hit.values["x"].strip().split()[-1]
    total, free = (int(number(hit.values[key]) * MIB) for key in ("a", "b"))
    if name == "CPU":
        start.set("ram_total_bytes", total, hit.line)
        start.set("ram_free_bytes", free, hit.line)
        return
    device = start.devices.setdefault(name, Device(name))
    device.description = hit.values["y"].strip()
    device.total_bytes, device.free_bytes, device.line = total, free, hit.line


def _cuda_device(start: Start, hit: Hit) -> None:
    """`  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes, VRAM: 24575 MiB`."""
    place = int(number(hit.values["a"]))
    kind = "ROCm" if start.get("rocm") or "gfx" in hit.line.text else "CUDA"
    device = start.devices.setdefault(f"{kind}{place}", Device(f"{kind}{place}"))
    device.description = hit.values["x"].strip()
    if found := re.search(r"VRAM: (\d+) MiB", hit.line.text):
        device.total_bytes = int(found[1]) * MIB
    device.line = hit.line
    start.set("compute_capability", hit.values["y"].split(",")[0].split(" ")[0], hit.line)


def _vulkan_device(start: Start, hit: Hit) -> None:
    """`ggml_vulkan: 0 = AMD Radeon … (RADV NAVI31) | uma: 0 | fp16: 1 | …`."""
    name = f"Vulkan{int(number(hit.values['a']))}"
    device = start.devices.setdefault(name, Device(name))
    device.description = hit.values["x"].strip()
    device.integrated = "uma: 1" in hit.line.text
    device.line = hit.line


def _failed_allocation(start: Start, hit: Hit) -> None:
    start.set("failed_bytes", int(number(hit.values["a"]) * MIB), hit.line)
    start.set("failed_device", int(number(hit.values["b"])), hit.line)


def _offloaded(start: Start, hit: Hit) -> None:
    start.set("offloaded", int(number(hit.values["a"])), hit.line)
    start.set("layers", int(number(hit.values["b"])), hit.line)


def _threads(start: Start, hit: Hit) -> None:
    start.set("threads", int(number(hit.values["a"])), hit.line)
    start.set("cpu_threads", int(number(hit.values["c"])), hit.line)
    start.set("avx2", "AVX2 = 1" in hit.line.text, hit.line)
    start.set("gpu_in_system_info", bool(re.search(r"\b(CUDA|HIP|ROCm|Vulkan|Metal|MTL) :", hit.line.text)))


def _slots(start: Start, hit: Hit) -> None:
    start.set("slots", int(number(hit.values["a"])), hit.line)
    start.set("slot_context", int(number(hit.values["b"])), hit.line)
    if found := re.search(r"kv_unified = '?(true|false)", hit.line.text):
        start.set("kv_unified", found[1] == "true", hit.line)
    _up(start, hit)


def _cache_types(start: Start, hit: Hit) -> None:
    start.set("kv_type_k", hit.values["x"].strip(), hit.line)
    start.set("kv_type_v", hit.values["y"].strip(), hit.line)


def _context(start: Start, hit: Hit) -> None:
    if "new slot" not in hit.line.text:
        _number("context")(start, hit)


def _file_size(start: Start, hit: Hit) -> None:
    unit = hit.values["x"].strip()[:1]
    size = number(hit.values["a"]) * {"K": 1024, "M": MIB, "G": 1024 * MIB, "T": MIB * MIB}.get(unit, 1)
    start.set("file_bytes", int(size), hit.line)
    start.set("bits_per_weight", number(hit.values["b"]), hit.line)


def _command(start: Start, hit: Hit) -> None:
    """A command line, as wrappers print the one that they start."""
    start.set("command", hit.values["x"].strip(), hit.line)


def _ollama_command(start: Start, hit: Hit) -> None:
    start.set("engine", "ollama", hit.line)
    start.set("command", hit.values["x"].strip().strip('"'), hit.line)


def _rate(name: str) -> Handler:
    def handler(start: Start, hit: Hit) -> None:
        start.set(f"{name}_tokens", int(number(hit.values["b"])), hit.line)
        start.set(f"{name}_tok_s", number(hit.values["c"]), hit.line)

    return handler


def _system_memory(start: Start, hit: Hit) -> None:
    """Ollama's `msg="system memory" total="31.1 GiB" free="28.7 GiB" free_swap="8.0 GiB"`."""
    start.set("ram_total_bytes", int(number(hit.values["a"]) * 1024 * MIB), hit.line)
    start.set("ram_free_bytes", int(number(hit.values["b"]) * 1024 * MIB), hit.line)
    if found := re.search(r'free_swap="([\d.]+) (GiB|MiB|B)', hit.line.text):
        unit = {"GiB": 1024 * MIB, "MiB": MIB, "B": 1}[found[2]]
        start.set("swap_free_bytes", int(float(found[1]) * unit), hit.line)


def _gin(start: Start, hit: Hit) -> None:
    """Ollama's line for a request to a model: that it was answered, and how the last one ended."""
    start.set("last_status", int(number(hit.values["a"])), hit.line)
    if number(hit.values["a"]) == 200:
        start.set("answered", True, hit.line)


def _vllm_arguments(start: Start, hit: Hit) -> None:
    start.set("engine", "vllm", hit.line)
    start.set("vllm_arguments", hit.values["x"], hit.line)


_TYPED = re.compile(r"(?:^|[$#>%] |/)llama-server (-.*)")


def _server_command(start: Start, hit: Hit) -> None:
    """A command that somebody typed: journals name the program in every line, so that its model is looked for too."""
    if found := _TYPED.search(hit.line.text):
        start.set("command", f"llama-server {found[1]}", hit.line)


def _measuring(start: Start, _hit: Hit) -> None:
    """The pass that fits begins: what it prints is measured, not allocated."""
    start.buffers.clear()


def _mapped(start: Start, hit: Hit) -> None:
    start.set("load_mode", "mmap" if hit.values["x"].startswith("t") else "none", hit.line)


_NAMED = re.compile(r"\b(model|KV|RS|state|compute|output|self|pipeline)\s+buffer size")


def _old_buffer(start: Start, hit: Hit) -> None:
    """Until the end of 2024 weights were `CPU buffer size = … MiB`, without saying of what."""
    if not _NAMED.search(hit.line.text):
        _buffer("model")(start, hit)


def _decode(start: Start, hit: Hit) -> None:
    """`eval time` also stands in `prompt eval time`, which is another line's matter."""
    if "prompt eval time" not in hit.line.text:
        _rate("decode")(start, hit)


# fmt: off
_OLLAMA_SOURCES = (
    "server", "sched", "runner", "llama_server", "routes", "images", "download", "upload", "gpu", "types", "memory",
    "device", "amd_linux", "amd_windows", "amd_common", "amd_hip_windows", "cuda_common", "payload_common",
    "dyn_ext_server", "app",
)
_VLLM_WORDS = (
    "Engine core initialization failed", "WorkerProc", "multiproc_executor", "gpu_model_runner", "model_executor/",
    "vllm_ascend", "vllm_omni", "tpu_inference", "async_llm_engine", "compressed_tensors", "AsyncEngineArgs",
    "neuron_model_runner", "tpu_model_runner", "hpu_model_runner", "xpu_model_runner", "cpu_model_runner",
    "model_runner_v1", "NixlConnector", "mooncake_connector", "nixl_connector",
)
FACTS: tuple[FactPattern, ...] = (
    # processes
    FactPattern("llama_server: initializing", _engine("llama.cpp"), "start"),
    FactPattern("main: build = <a> (<s>", _engine("llama.cpp"), "start"),
    FactPattern("build: <a> (<s>) with", _engine("llama.cpp"), "start"),
    FactPattern("build_info: b<a>-<s>", _engine("llama.cpp"), "start"),
    FactPattern("common_params_print_info: build <a> (<s>", _engine("llama.cpp"), "start"),
    FactPattern("INFO main build build=<a> commit=", _engine("llama.cpp"), "start"),
    FactPattern('"msg":"build info","build":<a>,', _engine("llama.cpp"), "start"),
    FactPattern('"build info" <s>build=<a> ', _engine("llama.cpp"), "start"),
    FactPattern("ik_llama", _engine("ik_llama.cpp")),
    FactPattern("Welcome to KoboldCpp - Version <x>", _version("koboldcpp"), "start"),
    FactPattern("[LM Studio]", _engine("lm-studio")),
    FactPattern("Listening on <s>(version <x>)", _version("ollama"), "start"),
    FactPattern("msg=offload library=<s> layers.requested=", _engine("ollama"), "start"),  # before its runner starts
    FactPattern('msg="offload to <s>" layers.requested=', _engine("ollama"), "start"),
    FactPattern('msg="starting llama server" cmd=<x>', _ollama_command, "start"),
    FactPattern('msg="starting llama-server" cmd=<x>', _ollama_command, "start"),
    FactPattern('msg="starting llama-server" <s>cmd=<x>', _ollama_command, "start"),
    FactPattern('msg="starting runner" cmd=<x>', _ollama_command, "start"),
    FactPattern("ollama.service", _engine("ollama")),
    FactPattern("OLLAMA_HOST:", _engine("ollama")),
    FactPattern("vLLM API server version <x>", _version("vllm"), "start"),
    FactPattern("non-default args: <x>", _vllm_arguments),
    FactPattern("Initializing a V<n> LLM engine (v<x>) with config", _version("vllm")),
    FactPattern("Initializing an LLM engine (v<x>) with config", _version("vllm")),
    *(FactPattern(f"source={name}.go:<n>", _likely("ollama")) for name in _OLLAMA_SOURCES),
    FactPattern("ollama runner", _likely("ollama")),
    FactPattern("vllm", _likely("vllm")),
    FactPattern("vLLM", _likely("vllm")),
    FactPattern("tensor-parallel-size", _likely("vllm")),
    FactPattern("tensor_parallel_size", _likely("vllm")),
    FactPattern("VLLM_TARGET_DEVICE", _likely("vllm")),
    FactPattern("[GIN] <s> | <a> | <s> POST <s>/api/chat", _gin),
    FactPattern("[GIN] <s> | <a> | <s> POST <s>/api/generate", _gin),
    FactPattern("[GIN] <s> | <a> | <s> POST <s>/api/embed", _gin),
    FactPattern("[GIN] <s> | <a> | <s> POST <s>/api/embeddings", _gin),
    FactPattern("[GIN] <s> | <a> | <s> POST <s>/v1/<s>", _gin),
    FactPattern("gpu_memory_utilization", _likely("vllm")),
    FactPattern("EngineCore", _likely("vllm")),
    FactPattern("MQLLMEngine", _likely("vllm")),
    FactPattern("LLMEngine", _likely("vllm")),
    *(FactPattern(word, _likely("vllm")) for word in _VLLM_WORDS),
    FactPattern("error: invalid argument: -<s>", _likely("llama.cpp")),
    FactPattern("error while handling argument <s>", _likely("llama.cpp")),
    FactPattern("llama_model_load: <s>", _likely("llama.cpp")),
    FactPattern("ExecStart=<x>", _command),
    FactPattern("llama-server <s>-m <w>", _server_command),
    FactPattern("llama-server <s>--model <w>", _server_command),
    FactPattern("llama-server <s>-hf <w>", _server_command),
    # the load
    FactPattern("load_model: loading model <x>", _loading, "load"),
    FactPattern("main: loading model", _begun, "begun"),
    FactPattern("loaded meta data with <n> key-value pairs and <n> tensors from <x> (version", _loading, "load"),
    FactPattern("loading draft model '<x>'", _text("draft_path")),
    FactPattern("getting device memory data", _measuring),
    FactPattern("constructing llama_context", _new_context),
    FactPattern("Starting to load model <s>", _begun, "begun"),
    FactPattern("Loading safetensors checkpoint shards: <s>", _begun, "begun"),
    FactPattern("llama_server: model loaded", _up, "served"),
    FactPattern("main: model loaded", _up, "served"),
    FactPattern("server is listening on", _up, "served"),
    FactPattern("llama_server: listening on http", _up, "served"),
    FactPattern("HTTP server listening", _begun, "begun"),
    FactPattern("Please connect to custom endpoint at", _served, "served"),
    FactPattern("llama runner started in", _up, "served"),
    FactPattern("llama-server started in", _up, "served"),
    FactPattern("all slots are idle", _served, "served"),
    FactPattern("initializing, n_slots = <a>, n_ctx_slot = <b>", _slots, "served"),
    FactPattern("Application startup complete", _up, "served"),
    FactPattern("Avg prompt throughput: <n> tokens/s", _served, "served"),
    FactPattern("Successful requests: <n>", _served, "served"),
    FactPattern("failed to load model", _ended, "ended"),
    FactPattern("exiting due to model loading error", _ended, "ended"),
    FactPattern("exiting due to HTTP server error", _ended, "ended"),
    FactPattern("unable to load model", _ended, "ended"),
    FactPattern("runner process has terminated", _ended, "ended"),
    FactPattern("llama-server process has terminated", _ended, "ended"),
    FactPattern("Engine core initialization failed", _ended, "ended"),
    FactPattern("EngineCore failed to start", _ended, "ended"),
    FactPattern("Failed to load model from file", _ended, "ended"),
    FactPattern("core dumped", _ended, "ended"),
    FactPattern("GGML_ASSERT(<s>) failed", _ended, "ended"),
    # the model
    FactPattern("arch = <x>", _text("architecture")),
    FactPattern("general.architecture str = <x>", _text("architecture")),
    FactPattern("general.name str = <x>", _text("model_name")),
    FactPattern("general.name = <x>", _text("model_name")),
    FactPattern("file type = <x>", _text("file_type")),
    FactPattern("model ftype = <x>", _text("file_type")),
    FactPattern("file size = <a> <x>B (<b> BPW)", _file_size),
    FactPattern("model size = <a> <x>B (<b> BPW)", _file_size),
    FactPattern("n_ctx_train = <a>", _number("context_train")),
    FactPattern("n_layer = <a>", _number("model_layers")),
    FactPattern("n_expert = <a>", _number("experts")),
    FactPattern("CLIP using <x> backend", _text("projector_backend")),
    FactPattern("loaded multimodal model", _flag("projector", True)),
    # settings
    FactPattern("n_threads = <a> (n_threads_batch = <n>) / <c> |", _threads),
    FactPattern("n_threads = <a> / <c> |", _threads),
    FactPattern("n_seq_max = <a>", _number("sequences")),
    FactPattern("n_ctx = <a>", _context),
    FactPattern("n_ctx_seq = <a>", _number("context_per_sequence")),
    FactPattern("n_ctx_per_seq = <a>", _number("context_per_sequence")),
    FactPattern("n_batch = <a>", _number("batch")),
    FactPattern("n_ubatch = <a>", _number("ubatch")),
    FactPattern("flash_attn = <x>", _text("flash_attn")),
    FactPattern("Flash Attention enabled", _flag("flash_attn", "enabled")),
    FactPattern("Flash Attention was auto, set to enabled", _flag("flash_attn", "enabled")),
    FactPattern("Flash Attention not supported, set to disabled", _flag("flash_attn", "disabled")),
    FactPattern("Flash Attention was auto, set to disabled", _flag("flash_attn", "disabled")),
    FactPattern("kv_unified = true", _flag("kv_unified", True)),
    FactPattern("kv_unified = false", _flag("kv_unified", False)),
    FactPattern("(load_mode = <x>)", _text("load_mode")),
    FactPattern("(mmap = <x>)", _mapped),
    FactPattern("initializing slots, n_slots = <a>", _number("slots")),
    FactPattern("new slot, n_ctx = <a>", _number("slot_context")),
    FactPattern("new slot n_ctx_slot = <a>", _number("slot_context")),
    FactPattern("K (<x>): <n> MiB, V (<y>): <n> MiB", _cache_types),
    FactPattern("offloaded <a>/<b> layers to GPU", _offloaded),
    FactPattern("layers.model=<b> layers.offload=<a> ", _offloaded),
    FactPattern("graph splits = <a>", _number("graph_splits")),
    FactPattern("splits = <a>,", _number("graph_splits")),
    FactPattern("buffer type overridden to CPU", _flag("overrides", True)),
    FactPattern("tensor overrides to CPU are used with mmap", _flag("overrides", True)),
    # devices and memory
    FactPattern("found <a> ROCm devices", _flag("rocm", True)),
    FactPattern("found <a> CUDA devices", _flag("cuda", True)),
    FactPattern("Device <a>: <x>, compute capability <y>, VMM", _cuda_device),
    FactPattern("Device <a>: <x>, <y> (0x<s>), VMM", _cuda_device),
    FactPattern("ggml_vulkan: <a> = <x> |", _vulkan_device),
    FactPattern("using device <x> (<y>) - <a> MiB free", _device),
    FactPattern("- <x> : <y> (<a> MiB, <b> MiB free)", _device_info),
    FactPattern("allocating <a> MiB on device <b>: cudaMalloc failed", _failed_allocation),
    FactPattern("recommendedMaxWorkingSetSize = <a> MB", _number("metal_limit_bytes", scale=1e6)),
    FactPattern("projected to use <a> MiB of device memory vs. <b> MiB", _number("projected_bytes", scale=MIB)),
    FactPattern("<x> model buffer size = <a> MiB", _buffer("model")),
    FactPattern("<x> buffer size = <a> MiB", _old_buffer),
    FactPattern("<x> KV buffer size = <a> MiB", _buffer("context")),
    FactPattern("<x> RS buffer size = <a> MiB", _buffer("context")),
    FactPattern("<x> DSV4 <s> state buffer size = <a> MiB", _buffer("context")),
    FactPattern("<x> compute buffer size = <a> MiB", _buffer("compute")),
    FactPattern("<x> compute buffer size is <a> MiB", _buffer("compute")),
    FactPattern('msg="model weights" buffer=<x> size="<a> <y>"', _sized("model")),
    FactPattern('msg="model weights" device=<x> size="<a> <y>"', _sized("model")),
    FactPattern('msg="kv cache" device=<x> size="<a> <y>"', _sized("context")),
    FactPattern('msg="compute graph" device=<x> size="<a> <y>"', _sized("compute")),
    FactPattern('msg="system memory" total="<a> GiB" free="<b> GiB"', _system_memory),
    # speed
    FactPattern("prompt eval time = <a> ms / <b> tokens (<n> ms per token, <c> tokens per second)", _rate("prompt")),
    FactPattern("eval time = <a> ms / <b> tokens (<n> ms per token, <c> tokens per second)", _decode),
    FactPattern("eval time = <a> ms / <b> runs (<n> ms per token, <c> tokens per second)", _decode),
    FactPattern("Maximum concurrency for <n> tokens per request: <a>x", _number("concurrency")),
)
# fmt: on
