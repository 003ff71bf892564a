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
        (FORGETS, "output-context-lost", "none shrinks silently"),
        (LOW_BITS, "output-degraded-low-bit", "No expert is dropped"),
    ],
)
def test_each_has_its_cause(log: str, ident: str, says: str) -> None:
    evidence = read(log)
    first = report.findings(evidence, diagnose(evidence, load()))[0]
    assert first.id == ident
    assert says in first.cause
