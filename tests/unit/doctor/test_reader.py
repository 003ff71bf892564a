"""Reading logs: what is in front of lines, starts, facts, long and strange files."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest

from plan_llama.doctor import prefixes
from plan_llama.doctor import reader as reader_module
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.patterns import compiled
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.rules import load
from plan_llama.errors import InputError, ProfileError
from tests.unit.doctor.carriers import CARRIERS, WRAPS
from tests.unit.doctor.logs import book, found, read

OOM = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 40543.11 MiB on device 0: "
    "cudaMalloc failed: out of memory\n"
    "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n"
)


@pytest.mark.parametrize(
    "before",
    [
        "0.13.127.894 E ",
        "Mar 02 10:01:01 box ollama[812]: ",
        "ollama-1  | ",
        "2025-03-02T10:01:01.123456789Z ",
        "2026-02-01 10:01:01 [DEBUG]\n",
        "[39225] 0.13.127.894 E ",
        "Mar 02 10:01:01 box docker[812]: llama-server-1  | 0.00.001.000 W ",
        "2025-03-02T10:01:01.123456789Z stderr F ",
        "2026-03-04 10:11:12,123 - wrapper.runner - ERROR - ",
        "ERROR:wrapper.runner:",
        "2026-03-04 10:11:12.123 | ERROR    | wrapper.runner:run:42 - ",
    ],
)
def test_what_stands_in_front_does_not_matter(before: str) -> None:
    text = "".join(before + line for line in OOM.splitlines(keepends=True))
    item = found(text)[0]
    assert item.rule.id == "gpu-oom-weights"
    assert item.evidence[0].text.startswith(("ggml_backend", "llama_model_load"))


def test_the_prefixes_of_vllm() -> None:
    for line in (
        "(EngineCore_DP0 pid=71) ERROR 09-02 11:11:11 [core.py:708] ValueError: x",
        "(VllmWorker TP0 pid=7) ValueError: x",
        "(RayWorkerWrapper pid=7, ip=10.0.0.1) ValueError: x",
    ):
        assert prefixes.strip(line) == "ValueError: x"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("(EngineCore_DP0 pid=71) x", "vllm"),
        ("\x1b[36m(VllmWorker rank=1 pid=9)\x1b[0m x", "vllm"),
        ("ERROR 12-17 18:40:37 engine.py:366] x", "vllm"),
        ("ERROR 09-02 11:11:11 [core.py:708] x", "vllm"),
        ("ERROR 2025-03-30 x", ""),
        ("(main pid=9) x", ""),
    ],
)
def test_who_wrote_a_line(line: str, name: str) -> None:
    assert prefixes.engine(line) == name


def test_a_pattern_needs_a_word() -> None:
    with pytest.raises(ProfileError, match="no whole word"):
        compiled("<n> (<s>")


def test_numbers_of_a_line_are_kept_and_spaces_do_not_count() -> None:
    match = compiled("offloaded <a>/<b> layers").search("load_tensors: offloaded   7/33   layers to GPU")
    assert match
    assert (match["a"], match["b"]) == ("7", "33")


def test_facts_of_a_start() -> None:
    text = (
        "common_params_print_info: build 11434 (abc) with GNU 12.2.0 for Linux x86_64\n"
        "  - CUDA0   : NVIDIA GeForce RTX 3090 (24126 MiB, 23871 MiB free)\n"
        "  - CPU     : AMD EPYC (24105 MiB, 24000 MiB free)\n"
        "srv load_model: loading model '/m/a.gguf'\n"
        "load_tensors: offloaded 13/13 layers to GPU\n"
        "load_tensors:   CPU_Mapped model buffer size =    24.90 MiB\n"
        "load_tensors:        CUDA0 model buffer size =   101.48 MiB\n"
        "llama_kv_cache:      CUDA0 KV buffer size =    48.00 MiB\n"
        "srv  load_model: initializing, n_slots = 4, n_ctx_slot = 4096, kv_unified = 'true'\n"
    )
    start = read(text).starts[-1]
    assert start.get("build") == 11434
    assert (start.get("offloaded"), start.get("layers"), start.get("slots")) == (13, 13, 4)
    assert start.get("ram_total_bytes") == 24105 * 1024**2
    assert start.devices["CUDA0"].free_bytes == 23871 * 1024**2
    assert [(item.device, item.kind) for item in start.buffers] == [
        ("CPU_Mapped", "model"),
        ("CUDA0", "model"),
        ("CUDA0", "context"),
    ]
    assert start.served is not None


def test_a_model_that_drafts_has_buffers_of_its_own() -> None:
    """llama-server b11434 with `-md` on a simulated card, of two tiny models: the lines about files and buffers."""
    loaded = "llama_model_loader: loaded meta data with 152 key-value pairs and 64 tensors from"
    text = f"""\
I srv    load_model: loading model '/m/llama-dense.gguf'
I {loaded} /m/llama-dense.gguf (version GGUF V3 (latest))
I load_tensors:   CPU_Mapped model buffer size =     0.12 MiB
I load_tensors: RPC0[127.0.0.1:52389] model buffer size =     4.40 MiB
I llama_context: constructing llama_context
I llama_context:        CPU  output buffer size =     0.00 MiB
I llama_kv_cache: RPC0[127.0.0.1:52389] KV buffer size =     8.00 MiB
I sched_reserve: RPC0[127.0.0.1:52389] compute buffer size =     6.26 MiB
I sched_reserve:        CPU compute buffer size =     4.02 MiB
I common_speculative_init_result: loading draft model '/m/llama-small.gguf'
I {loaded} /m/llama-small.gguf (version GGUF V3 (latest))
I load_tensors:   CPU_Mapped model buffer size =     0.12 MiB
I load_tensors: RPC0[127.0.0.1:52389] model buffer size =     4.40 MiB
I llama_context: constructing llama_context
I llama_kv_cache: RPC0[127.0.0.1:52389] KV buffer size =     4.25 MiB
I sched_reserve: RPC0[127.0.0.1:52389] compute buffer size =     8.59 MiB
I sched_reserve:        CPU compute buffer size =     4.10 MiB
"""
    start = read(text).starts[-1]
    assert start.get("model_path") == "/m/llama-dense.gguf"
    sizes = {
        kind: [round(item.size_bytes / 1024**2, 2) for item in start.buffers if item.kind == kind]
        for kind in ("model", "context", "compute")
    }
    assert sizes == {
        "model": [0.12, 4.40, 0.12, 4.40],
        "context": [8.00, 4.25],
        "compute": [6.26, 4.02, 8.59, 4.10],
    }


def test_a_restart_is_another_start_and_a_fit_is_not() -> None:
    load = "llama_model_loader: loaded meta data with 25 key-value pairs and 111 tensors from a.gguf (version 3)\n"
    fit = "common_params_fit_impl: getting device memory data for initial parameters:\n"
    begin = "srv  llama_server: initializing ...\n"
    assert len(read(begin + fit + load + load).starts) == 1
    evidence = read(
        begin + load + OOM + "failed to load model\n" + begin + load + "srv  llama_server: model loaded\n"
    )
    assert [start.served is not None for start in evidence.starts] == [False, True]


def test_what_a_later_start_does_not_show_is_less_sure() -> None:
    begin = "srv  llama_server: initializing ...\nsrv load_model: loading model 'a.gguf'\n"
    once = found(begin + OOM + "failed to load model\n")[0]
    then = found(begin + OOM + "failed to load model\n" + begin + "srv  llama_server: model loaded\n")[0]
    assert then.rule.id == once.rule.id == "gpu-oom-weights"
    assert then.confidence < once.confidence
    assert "line 8" in then.remark


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_a_windows_shell_writes(encoding: str) -> None:
    reader = LogReader(book())
    reader.read(io.BytesIO(OOM.replace("\n", "\r\n").encode(encoding)), "log")
    assert reader.finish().starts[-1].hits


def test_a_binary_file_is_refused() -> None:
    with pytest.raises(InputError, match="not a text file"):
        LogReader(book()).read(io.BytesIO(b"GGUF\x03\0\0\0"), "model.gguf")


def test_a_line_without_an_end_and_many_lines_take_little_memory() -> None:
    lines = b"".join(b"slot print: id %d | task %d | prompt w%x done\n" % (i, i, i) for i in range(60_000))
    reader = LogReader(book())
    tracemalloc.start()
    reader.read(io.BytesIO(b"x" * 8_000_000 + b"\n" + lines + OOM.encode()), "log")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    evidence = reader.finish()
    assert peak < 40_000_000
    assert evidence.lines == 60_003
    assert evidence.starts[-1].hits


def test_the_buffers_of_ollamas_own_engine() -> None:
    text = (
        'time=2025-03-12T12:11:39Z level=INFO source=ggml.go:289 msg="model weights" buffer=CUDA0 size="16.2 GiB"\n'
        'time=2025-03-12T12:11:39Z level=INFO source=ggml.go:289 msg="model weights" buffer=CPU size="1.0 GiB"\n'
        'time=2025-10-12T12:11:39Z level=INFO source=device.go:251 msg="kv cache" device=CUDA0 size="640.0 MiB"\n'
    )
    start = read(text).starts[-1]
    found_sizes = {(item.device, item.kind): item.size_bytes for item in start.buffers}
    assert found_sizes[("CPU", "model")] == 1024**3
    assert found_sizes[("CUDA0", "context")] == 640 * 1024**2


HEALTHY_WITHOUT_GPU = """\
  - CPU     : AMD EPYC (64230 MiB, 61200 MiB free)
system_info: n_threads = 16 (n_threads_batch = 16) / 16 | CPU : SSE3 = 1 | AVX2 = 1 | LLAMAFILE = 1 |
load_model: loading model '/mnt/models/Qwen3-8B-Q4_K_M.gguf'
load_tensors: offloaded 37/37 layers to GPU
load_tensors:   CPU_Mapped model buffer size =  4789.00 MiB
llama_context: n_ctx                 = 8192
llama_kv_cache:        CPU KV buffer size =  1152.00 MiB
sched_reserve:        CPU compute buffer size =   304.75 MiB
llama_server: model loaded
print_timing: |        eval time =    9000.00 ms /   100 tokens (   90.00 ms per token,    11.11 tokens per second)
"""


def test_a_machine_without_a_gpu_is_not_sick() -> None:
    assert [item.rule.id for item in found(HEALTHY_WITHOUT_GPU) if item.severity != "note"] == []


@pytest.mark.parametrize("before", ["$ ", "root@box:~# ", "./", "/opt/build/bin/", ""])
@pytest.mark.parametrize("words", ["-m a.gguf -c 4096", "-c 4096 --model a.gguf", "-hf owner/repo:Q4_K_M"])
def test_a_command_that_was_typed(before: str, words: str) -> None:
    assert read(f"{before}llama-server {words}\n").starts[-1].get("command") == f"llama-server {words}"


def test_a_journal_that_names_the_program_shows_no_command() -> None:
    line = "Mar 02 10:01:01 box llama-server[812]: srv update: -m is the model"
    assert read(f"{line}\nllama-server is a model server with -m\n").starts[-1].get("command") is None


def test_what_somebody_asked_is_no_message_of_the_engine() -> None:
    asked = (
        "INFO 05-22 02:20:59 [logger.py:43] Received request chatcmpl-26e0: prompt: 'RuntimeError: CUDA error: "
        "an illegal memory access was encountered', params: SamplingParams(n=1)\n"
    )
    assert found(asked) == []
    assert found(asked.replace("Received request chatcmpl-26e0: prompt: ", ""))


def test_a_line_below_the_level_of_errors_is_none_whatever_it_says() -> None:
    lines = (
        "DEBUG 06-12 19:58:31 [__init__.py:76] Exception happens when checking CUDA platform: not found\n"
        '(APIServer pid=1) INFO:     10.0.0.1:5914 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error\n'
    )
    assert not read(lines).starts[0].errors
    assert read("ERROR 06-12 19:58:31 [core.py:76] Exception\n").starts[0].errors


def test_a_line_break_inside_of_json_is_no_letter_of_the_next_word() -> None:
    line = r'{"message":"error running hook: exit status 1\nnvidia-container-cli: initialization error: no adapters"}'
    assert [item.rule.id for item in found(f"{line}\n")] == ["container-no-gpu"]


@pytest.mark.parametrize(
    "line",
    [
        "\x1b[31mCUDA error: out of memory\x1b[0m",
        "[31mCUDA error: out of memory[0m",  # a forum took the first character
        '{"log":"\\u001b[31mCUDA error: out of memory\\u001b[0m\\n","stream":"stderr"}',
    ],
)
def test_colours_are_no_part_of_a_word(line: str) -> None:
    assert [item.rule.id for item in found(line)] == ["gpu-oom-runtime"]


def test_typeset_quotes_are_quotes() -> None:
    assert found("unknown model architecture: \u2018nova\u2019")[0].rule.id == "unknown-architecture"


BEFORE = "".join(f"slot print: id 0 | task {number} | prompt done\n" for number in range(5))


def first(data: bytes) -> tuple[str, int]:
    """The first finding and its line."""
    reader = LogReader(book())
    reader.read(io.BytesIO(data), "log")
    item = diagnose(reader.finish(), load())[0]
    return item.rule.id, item.evidence[0].number


@pytest.mark.parametrize(
    ("name", "number"), [("CRI in parts", 8), ("docker json-file", 7), ("rich", 8), ("blank lines", 13)]
)
def test_lines_keep_their_numbers(name: str, number: int) -> None:
    assert first(CARRIERS[name](BEFORE + OOM)) == ("gpu-oom-weights", number)


def test_a_line_that_docker_cut_is_one() -> None:
    text = "unable to allocate CUDA0 buffer\n"
    parts = (text[:18], text[18:])
    records = "".join(
        json.dumps({"log": part, "stream": "stderr"}) + "\n" for part in (*BEFORE.splitlines(True), *parts)
    )
    assert first(records.encode()) == ("gpu-oom-weights", 6)


@pytest.mark.parametrize("name", ["JSON string", "CRI in parts"])
def test_a_large_log_in_one_string_or_in_parts(name: str) -> None:
    many = BEFORE * 5000 + "x" * 130 + "\n"
    assert first(CARRIERS[name](many + OOM))[0] == "gpu-oom-weights"


def test_rows_of_a_terminal_go_on_where_a_chunk_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    text = WRAPS["wrapped at 80"](BEFORE + OOM)
    for size in range(400, 420):
        monkeypatch.setattr(reader_module, "_CHUNK", size)
        assert first(text)[0] == "gpu-oom-weights"


def test_what_a_record_says_beside_its_message_is_read() -> None:
    record = {"level": "error", "msg": "failed to load", "error": "cudaMalloc failed: out of memory"}
    assert first(json.dumps(record).encode())[0] == "gpu-oom-runtime"


def test_a_journal_exports_lines_with_control_characters_as_binary() -> None:
    said = b"\x1b[31mCUDA error: out of memory\x1b[0m"
    entry = (
        b"__CURSOR=s=ab\n__REALTIME_TIMESTAMP=1\nMESSAGE\n"
        + len(said).to_bytes(8, "little")
        + said
        + b"\n_PID=7\n\n"
    )
    assert first(entry) == ("gpu-oom-runtime", 3)


def test_lines_of_one_length_are_not_put_together() -> None:
    lines = "".join(
        f"print_info: n_layer {number} is one of the model's layers, as many others are\n"
        for number in range(9)
    )
    reader = LogReader(book())
    reader.read(io.BytesIO((lines + "error: done").encode()), "log")
    assert all(
        "print_info" not in line.text or line.text.count("layers") == 1 for line in reader.finish().tail
    )


def test_a_shell_of_windows_that_leaves_out_the_mark() -> None:
    assert first(OOM.replace("\n", "\r\n").encode("utf-16-le"))[0] == "gpu-oom-weights"
