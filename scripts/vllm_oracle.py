"""Ask vLLM itself what it would do on GPUs that are not there: weights, KV cache, or why it does not start.

    python scripts/vllm_oracle.py < cases.jsonl > results.jsonl

Runs in the environment that scripts/vllm_environment.py makes. A case is {"capability": "9.0", "gib": 139.8, "gpus": 8,
"stage": 0, "overhead_gib": 8.2, "config": {…}, "args": ["-tp", "8"]}; a result is the case with `result`, or with
`refused` and vLLM's own words. The configuration, the model class (on the meta device, in process groups of the wanted
size), the choice of attention backend and the planning of the KV cache are vLLM's; no weight is read and no kernel
runs. What a start takes beside weights and cache is given (`overhead_gib`), not worked out. Each case runs in a process
of its own, forked after the imports.
"""

import json
import os
import sys
import tempfile
import types
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
for name in (
    "_C",
    "_C_stable_libtorch",
    "_moe_C_stable_libtorch",
    "_qutlass_C",
    "_flashmla_C",
    "vllm_flash_attn._vllm_fa2_C",
    "vllm_flash_attn._vllm_fa3_C",
):
    sys.modules[f"vllm.{name}"] = types.ModuleType(f"vllm.{name}")  # compiled code is never called

import torch
import vllm.platforms as platforms
import vllm.platforms.cuda as cuda
from torch.overrides import TorchFunctionMode
from vllm.platforms.interface import DeviceCapability

CARD: dict[str, Any] = {"capability": (9, 0), "bytes": 80 << 30, "gpus": 8}


def _card_number() -> int:
    major, minor = CARD["capability"]
    return 10 * major + minor


for name, knows in {
    "cutlass_scaled_mm_supports_block_fp8": lambda number: number >= 90,
    "cutlass_scaled_mm_supports_fp8": lambda number: number >= 89,
    "cutlass_scaled_mm_supports_fp4": lambda number: number >= 100,
    "cutlass_group_gemm_supported": lambda number: number in (90, 100, 103),
}.items():
    setattr(torch.ops._C, name, knows)


class ImaginaryCuda(cuda.CudaPlatformBase):
    """A machine with the case's cards."""

    get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(*CARD["capability"]))
    get_device_name = classmethod(lambda cls, device_id=0: "imaginary")
    get_device_total_memory = classmethod(lambda cls, device_id=0: CARD["bytes"])
    device_count = classmethod(lambda cls: CARD["gpus"])
    is_fully_connected = classmethod(lambda cls, ids: True)
    num_compute_units = classmethod(lambda cls, device_id=0: 132)
    is_integrated_gpu = classmethod(lambda cls, device_id=0: False)
    get_all_device_numa_nodes = classmethod(lambda cls: None)


platforms._current_platform = ImaginaryCuda()

import torch._ops as torch_ops
import vllm._custom_ops
import vllm.distributed.parallel_state as groups
import vllm.model_executor.models.registry as registry
import vllm.v1.core.kv_cache_planning as planning
import vllm.v1.worker.workspace as workspace
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config, get_kv_cache_capacity
from vllm.v1.kv_cache_interface import AttentionSpec

registry._run_in_subprocess = lambda ask: ask()


class _AnyOp:
    """Stands for a compiled operator that is looked up and not called."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        raise RuntimeError("a compiled operator was called")

    def __getattr__(self, name: str) -> "_AnyOp":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


_look_up = torch_ops._OpNamespace.__getattr__


def _lenient(space: Any, name: str) -> Any:
    try:
        return _look_up(space, name)
    except AttributeError:
        if name.startswith("__") or not space.name.startswith("_"):
            raise
        return _AnyOp()


torch_ops._OpNamespace.__getattr__ = _lenient


class _Group:
    """A process group of which only the size and this rank's place are asked."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.world_size = self.n = size
        self.rank_in_group = self.rank_ = self.local_rank = rank
        self.ranks = list(range(size))
        self.first_rank = 0
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.device = torch.device("meta")
        self.device_communicator = None
        self.use_device_communicator = self.use_custom_op_call = False
        self.unique_name = "imaginary"
        self.cpu_group = self.device_group = self

    def size(self) -> int:
        return self.n

    def rank(self) -> int:
        return self.rank_

    def barrier(self, *args: Any, **more: Any) -> None:
        return None

    def broadcast_object(self, value: Any = None, *args: Any, **more: Any) -> Any:
        return value

    broadcast_obj = broadcast_object


class _Meta(TorchFunctionMode):
    """Sends what asks for a CUDA device to the meta device."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = dict(kwargs or {})
        if "cuda" in str(more.get("device")):
            more["device"] = "meta"
        plain = [
            torch.device("meta") if isinstance(item, torch.device) and item.type == "cuda" else item
            for item in args
        ]
        return func(*plain, **more)


def ask(case: dict[str, Any]) -> dict[str, Any]:
    """Starts vLLM as far as its KV cache. Raises whatever vLLM raises."""
    CARD["capability"] = tuple(map(int, case["capability"].split(".")))
    CARD["bytes"] = int(case["gib"] * 2**30)
    CARD["gpus"] = case["gpus"]
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(case["config"], file)
        args = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args([folder, *case["args"]])
        validate_parsed_serve_args(args)
        args.model = args.model_tag
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
            UsageContext.OPENAI_API_SERVER, args.headless
        )
        return _placed(config, case)


def _placed(config: Any, case: dict[str, Any]) -> dict[str, Any]:
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm") and module and "has_deep_gemm" in vars(module):
            module.has_deep_gemm = lambda: True  # it is part of the CUDA wheel
    parallel = config.parallel_config
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    data, prefill = parallel.data_parallel_size, parallel.prefill_context_parallel_size
    groups._TP, groups._ETP = _Group(tensor), _Group(tensor)
    groups._PP, groups._DP = _Group(pipeline, case.get("stage", 0)), _Group(data)
    groups._DCP, groups._PCP = _Group(parallel.decode_context_parallel_size), _Group(prefill)
    groups._EP = groups._EPLB = _Group(tensor * data * prefill)
    groups._WORLD, groups._INNER_DP_WORLD = _Group(tensor * pipeline * data), _Group(tensor * pipeline)
    groups._NODE_COUNT = parallel.nnodes
    workspace.init_workspace_manager(torch.device("meta"), 1)
    for name in ("empty_cache", "synchronize"):
        setattr(torch.accelerator, name, lambda *args, **more: None)
    torch.accelerator.current_device_index = torch.cuda.current_device = lambda: 0
    torch.cuda.Stream = torch.cuda.Event = type("Stream", (), {"__init__": lambda self, *args, **more: None})
    with set_current_vllm_config(config):
        with torch.device("meta"), _Meta(), set_default_torch_dtype(config.model_config.dtype):
            model = initialize_model(config)
        platforms.current_platform.update_block_size_for_backend(config)
        specs, backends = {}, set()
        for name, layer in get_layers_from_vllm_config(config, AttentionLayerBase).items():
            if getattr(layer, "kv_sharing_target_layer_name", None):
                continue
            if spec := layer.get_kv_cache_spec(config):
                if isinstance(spec, AttentionSpec):
                    backends.add(layer.get_attn_backend().get_name())
                    spec = layer.get_attn_backend().customize_spec(spec)
                specs[name] = spec
        weights = sum(item.numel() * item.element_size() for item in model.parameters())
        reserved = sum(
            item.numel() * item.element_size()
            for item in getattr(workspace.current_workspace_manager(), "_current_workspaces", [])
            if item is not None
        )
        cache = config.cache_config
        room = cache.kv_cache_memory_bytes or int(
            cache.gpu_memory_utilization * CARD["bytes"] - weights - case["overhead_gib"] * 2**30
        )
        cache.kv_cache_layout = cache.kv_cache_layout or "LBNHC"
        found = planning.get_kv_cache_configs(
            config, [specs], [room], planning.get_global_kv_cache_groups(config, [specs])
        )
        tokens, concurrency = get_kv_cache_capacity(config, generate_scheduler_kv_cache_config(found))
    return {
        "weights_bytes": weights,
        "workspace_bytes": reserved,
        "backends": sorted(backends),
        "kv_dtype": cache.cache_dtype,
        "block_size": cache.block_size,
        "kv_bytes": room,
        "blocks": found[0].num_blocks,
        "token_bytes": sum(spec.page_size_bytes / spec.block_size for spec in specs.values()),
        "kv_tokens": tokens,
        "max_concurrency": round(concurrency, 4),
        "max_model_len": config.model_config.max_model_len,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "executor": parallel.distributed_executor_backend,
        "quantization": config.model_config.quantization,
    }


def main() -> None:
    """Every line of standard input, in a fork of its own."""
    assert vllm._custom_ops  # imported for what it registers
    for line in sys.stdin:
        case = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            try:
                answer = {"result": ask(case)}
            except BaseException as error:  # noqa: BLE001 - whatever vLLM raises is the answer
                answer = {"refused": f"{type(error).__name__}: {error}"}
            with os.fdopen(writing, "w", encoding="utf-8") as out:
                json.dump(answer, out)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as said:
            answer = json.loads(said.read() or '{"refused": "the process died"}')
        os.waitpid(child, 0)
        sys.stdout.write(json.dumps(case | answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
