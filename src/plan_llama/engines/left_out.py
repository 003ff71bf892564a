"""What arguments mean that a command leaves out: the defaults of its build.

Those of b11434 hold in all trees from b8643 on. The trees up to b6324, which have no --fit, had others
(common/common.h, llama_model_default_params; `llama-server --help` prints them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plan_llama.engines.commandline import ParsedCommand
from plan_llama.engines.flags import FlagTable
from plan_llama.hardware.types import Machine

FlashAttn = Literal["on", "off", "auto"]
# Read by the CUDA, HIP, Vulkan, SYCL and Metal backends. The first known tree in which all of them do is b8643's
# (llama-cpp-python 0.3.20: ggml/src/ggml-cuda/ggml-cuda.cu and its kin).
OFFLOAD_THRESHOLD = "GGML_OP_OFFLOAD_MIN_BATCH"
OFFLOAD_THRESHOLD_SINCE = 8643
CACHE_RAM_MIB = 8192
CTX_CHECKPOINTS = 32
_OLD_CONTEXT = 4096  # 0 is the model's own
_OLD_CONTEXT_SINCE = 4094  # b3848 took the model's own
_SWA_CHECKPOINTS = 3  # their first name and number, b6324


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """The values of arguments that are not given. `parallel` -1 is automatic; without `all_layers` none is on a GPU."""

    context: int = 0
    parallel: int = -1
    all_layers: bool = True
    flash_attn: FlashAttn = "auto"
    fit: bool = True
    cache_ram_mib: int = CACHE_RAM_MIB
    ctx_checkpoints: int = CTX_CHECKPOINTS


def left_out(parsed: ParsedCommand, machine: Machine) -> LeftOut:
    """The defaults of a command's build and program."""
    program = parsed.program
    table = FlagTable.load(parsed.build if parsed.build > 1 else parsed.table_build)
    if program == "llama-bench" or table.lookup("--fit", program) is not None:
        return LeftOut(parallel=-1 if program == "llama-server" else 1)
    flash_attn = table.lookup("-fa", program)
    metal = bool(machine.gpus) and all(gpu.backend == "metal" for gpu in machine.gpus)
    return LeftOut(
        context=_OLD_CONTEXT if table.table_build >= _OLD_CONTEXT_SINCE else 0,
        parallel=1,
        all_layers=metal,
        flash_attn="off" if flash_attn is None or flash_attn.kind == "flag" else "auto",
        fit=False,
        cache_ram_mib=0,
        ctx_checkpoints=_SWA_CHECKPOINTS if table.lookup("--swa-checkpoints", program) else 0,
    )
