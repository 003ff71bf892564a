"""Four failures that a guide explains, and what they are (docs/guides/doctor.md)."""

from __future__ import annotations

import pytest

from plan_llama.doctor import report
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.rules import load
from tests.unit.doctor.logs import read

STOPS = """\
  - CPU     : AMD Ryzen 9 (128662 MiB, 121034 MiB free)
load_model: loading model '/models/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf'
load_tensors: loading model tensors, this can take a while... (load_mode = none)
..............................................................................................
"""
KERNEL = "Out of memory: Killed process 4122 (llama-server) total-vm:240132212kB, anon-rss:122113440kB\n"
PAGING = """\
  - CPU     : AMD Ryzen 9 (128662 MiB, 121034 MiB free)
load_model: loading model '/models/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf'
load_tensors: offloaded 80/80 layers to GPU
load_tensors:   CPU_Mapped model buffer size = 207510.22 MiB
load_tensors:        CUDA0 model buffer size = 12622.10 MiB
llama_server: model loaded
print_timing: |        eval time =  250000.00 ms /   100 tokens ( 2500.00 ms per token,     0.40 tokens per second)
"""
ON_THE_CPU = """\
  - CUDA0   : NVIDIA GeForce RTX 3090 (24126 MiB, 23871 MiB free)
  - CPU     : AMD EPYC (515662 MiB, 501034 MiB free)
load_model: loading model '/models/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf'
load_tensors: offloaded 0/80 layers to GPU
load_tensors:   CPU_Mapped model buffer size = 220132.32 MiB
llama_server: model loaded
print_timing: |        eval time =  250000.00 ms /   100 tokens ( 2500.00 ms per token,     0.40 tokens per second)
"""
NO_ROOM = """\
load_model: loading model '/models/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf'
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 21412.50 MiB on device 0: cudaMalloc failed: out of memory
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
srv    load_model: failed to load model, '/models/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf'
"""
FORGETS = """\
llama_context: n_ctx                 = 2048
load_model: initializing, n_slots = 4, n_ctx_slot = 512, kv_unified = 'false'
update_slots: id  0 | task 0 | slot context shift, n_keep = 0, n_left = 511, n_discard = 255
"""
LOW_BITS = "print_info: file size   = 219.78 GiB (2.51 BPW)\nllama_server: model loaded\n"


@pytest.mark.parametrize(
    ("log", "ident", "says"),
    [
        (STOPS, "log-ends-early", "killed the process for want of memory"),
        (STOPS + KERNEL, "host-oom-killed", "count in full against RAM"),
        (PAGING, "mmap-paging-thrash", "it is the drive that decides"),
        (ON_THE_CPU, "zero-offload", "A GPU was found and nothing was placed on it"),
        (FORGETS, "output-context-lost", "none shrinks silently"),
        (NO_ROOM, "gpu-oom-kv", "cache"),  # a cache without room stops the load: no context is left to shrink
        (LOW_BITS, "output-degraded-low-bit", "No expert is dropped"),
    ],
)
def test_each_has_its_cause(log: str, ident: str, says: str) -> None:
    evidence = read(log)
    first = report.findings(evidence, diagnose(evidence, load()))[0]
    assert first.id == ident
    assert says in first.cause
