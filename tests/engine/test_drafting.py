"""A server that drafts with the model's own block: its log names the buffers of both contexts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plan_llama.memory.estimate import buffers
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.config_folder import spec_of
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.models.writer import write_header
from tests.engine import processes
from tests.engine.measure import MIB, Sums, log_buffers

pytestmark = pytest.mark.engine

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"
DEEPSEEK_V4 = "deepseek-ai/DeepSeek-V4-Flash"
SMALLER = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "vocab_size": 2048,
    "n_routed_experts": 8,
    "num_experts": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}


def smaller(config: dict[str, Any]) -> dict[str, Any]:
    """A published config with few layers and short rows."""
    made = {key: SMALLER.get(key, value) for key, value in config.items()}
    if isinstance(text := config.get("text_config"), dict):
        made["text_config"] = smaller(text)
    return made


def with_draft_block(spec: ModelSpec) -> ModelSpec:
    """DeepSeek-V4 with a block for drafting, which our reading of its config leaves out: as the last layer, without
    what compresses (load_arch_tensors, src/models/deepseek4.cpp, b11434)."""
    block, width = spec.layers, spec.int_param("embedding_length")
    last = f"blk.{block - 1}."
    like = [
        replace(tensor, name=tensor.name.replace(last, f"blk.{block}."))
        for tensor in spec.tensors
        if tensor.name.startswith(last) and "compressor" not in tensor.name and "indexer" not in tensor.name
    ]
    more = {"eh_proj": (2 * width, width), "enorm": (width,), "hnorm": (width,), "shared_head_norm": (width,)}
    own = [
        Tensor(f"blk.{block}.nextn.{name}.weight", by_name("f16" if len(shape) > 1 else "f32"), shape)
        for name, shape in more.items()
    ]
    hparams = {
        key: (*value, value[-1]) if isinstance(value, tuple) and len(value) == block else value
        for key, value in spec.hparams.items()
    }
    ratios = spec.hparams["attention.compress_ratios"]
    assert isinstance(ratios, tuple)
    hparams |= {
        "attention.compress_ratios": (*ratios[:block], 0),
        "block_count": block + 1,
        "nextn_predict_layers": 1,
    }
    return replace(spec, tensors=(*spec.tensors, *like, *own), hparams=hparams)


def last_reserved(log: str) -> Sums:
    """The buffers of all contexts; the one that drafts reserves a second time, with its sampling on the device."""
    found = Sums()
    for part in log.split("constructing llama_context"):
        head, *again = part.split("sched_reserve: reserving")
        found += log_buffers(head) + log_buffers(again[-1] if again else "")
    return found


@pytest.mark.parametrize(
    ("file", "name", "slots"),
    [
        ("configs", "zai-org/GLM-4.5", "-np 2"),
        ("hybrid", "zai-org/GLM-5.1", "-np 2"),
        ("hybrid", "Qwen/Qwen3.6-27B", "-np 2"),
        ("hybrid", DEEPSEEK_V4, "-np 2"),
        ("hybrid", DEEPSEEK_V4, "-np 4 -kvu"),
    ],
)
def test_both_contexts_are_counted(
    file: str, name: str, slots: str, engine_bin: Path, tmp_path: Path
) -> None:
    config = smaller(json.loads((CONFIGS / f"{file}.json").read_text(encoding="utf-8"))[name]["config"])
    heads = {"num_key_value_heads": 1} if name == DEEPSEEK_V4 else {}
    spec = spec_of({**config, **heads}, "small", "F16", where=name, folder=tmp_path)
    if name == DEEPSEEK_V4:
        spec = with_draft_block(spec)
    path, log, port = tmp_path / "small.gguf", tmp_path / "server.log", processes.free_port()
    write_header(spec, path)  # all weights are zero: enough to start with
    settings = Settings(
        context=4096,
        parallel=int(slots.split()[1]),
        kv_unified="-kvu" in slots,
        ubatch=256,
        draft_layers=True,
        draft_tokens=5,
        draft_kv_type_k="q8_0",
        draft_kv_type_v="q8_0",
        repack=False,
    )
    words = (
        f"-c 4096 {slots} -ub 256 -fa on -nr --spec-type draft-mtp --spec-draft-n-max 5 -ctkd q8_0 -ctvd q8_0"
    )
    argv: list[str | Path] = [
        engine_bin / "llama-server",
        "-m",
        path,
        *words.split(),
        "--no-warmup",
        "--load-mode",
        "none",
    ]
    argv += ["-lv", "4", "--host", processes.LOOPBACK, "--port", str(port), "--fit", "off"]
    with processes.running(argv, env=processes.engine_env(engine_bin), log=log) as server:
        processes.wait_until(
            lambda: processes.ask(port, "/health") == {"status": "ok"},
            server,
            log,
            what="llama-server",
            timeout_s=60,
        )
    found = buffers(ModelTable(spec), settings, []).host
    logged = last_reserved(log.read_text(encoding="utf-8", errors="replace"))
    for part in ("weights_bytes", "context_bytes", "compute_bytes"):
        # the log rounds each buffer to 0.01 MiB
        assert getattr(found, part) == pytest.approx(getattr(logged, part), abs=0.03 * MIB), part
