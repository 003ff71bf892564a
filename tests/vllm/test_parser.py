"""Every command that is emitted parses, and commands are read as vLLM 0.33 reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from plan_llama.cli.nodes import nodes_of
from plan_llama.cli.options import EngineOptions, ModelOptions, WishOptions
from plan_llama.cli.vllm_plan import KV_TYPES, PINS, make
from plan_llama.cli.wishes import wishes
from plan_llama.engines.vllm import flags
from plan_llama.engines.vllm.parsing import parse
from plan_llama.hardware.overrides import HardwareChoice, resolve

pytestmark = pytest.mark.vllm

Refusals = Callable[[Sequence[Sequence[str]]], list[str | None]]
PLANS = [
    ("glm-5.1", "H200*8", {}, 1),
    ("glm-5.1", "H200*8", {"users": 32}, 1),
    ("glm-5.1", "B200*8", {"ctx": "max"}, 1),
    ("glm-5.1", "H100 80GB*8", {"ctx": "max"}, 2),
    ("glm-5.1", "MI300X*8", {}, 1),
    ("deepseek-r1", "H200*8", {"users": 16, "ctx": "65536"}, 1),
    ("deepseek-r1", "H200*8", {"users": 64}, 4),
    ("llama-3.1-8b", "RTX 3090*2", {}, 1),
    ("llama-3.1-8b", "RTX 4090", {"kv_type": "fp8", "ctx": "65536"}, 1),
    ("llama-3.3-70b", "H100 80GB*4", {"users": 8}, 1),
    ("llama-3.1-8b", "T4*4", {}, 1),
    ("gpt-oss-20b", "RTX 4090", {}, 1),
    ("gpt-oss-120b", "H100 80GB", {"users": 8}, 1),
    ("qwen3-30b-a3b", "RTX 4090*4", {"pin": ["tensor-parallel=4"]}, 1),
    ("qwen3-32b", "RTX 3090*2", {}, 1),
    ("minimax-m2", "H100 80GB*4", {}, 1),
    ("gemma-3-27b", "L40S*2", {}, 1),
]
# Behind `vllm serve MODEL`: what people write, right and wrong.
WRITTEN = [
    "-tp 8",
    "-tp=8",
    "--tensor_parallel_size 8",
    "--tensor-parallel-size=8",
    "--tensor-parallel 8",
    "--max-model-len 128K --max-num-batched-tokens 8k",
    "--max-model-len auto",
    "--max-model-len -1",
    "--max-model-len 1.5K",
    "--max-model-len x",
    "--kv-cache-memory-bytes 25.6g",
    "--gpu-memory-utilization 0.9",
    "--gpu-memory-utilization 92%",
    "--device-memory-utilization 0.9",
    "--enable-expert-parallel",
    "-ep",
    "--enable-expert-parallel=true",
    "--disable-expert-parallel",
    "--no-enable-expert-parallel",
    "--no-enable-prefix-caching",
    "--speculative-config.method mtp --speculative-config.num_speculative_tokens 3",
    '--speculative-config {"method":"mtp","num_speculative_tokens":3}',
    "--speculative-config not-json",
    "--swap-space 4",
    "--max 5",
    "--kv-cache-dtype q8_0",
    "--dtype half",
    "--dtype int8",
    "--load-format gguf",
    "--tool-call-parser glm47 --enable-auto-tool-choice --reasoning-parser glm45",
    "--served-model-name a b --port 8000",
    "-O3",
    "-O 2",
    "--nnodes 2 --node-rank 1 --headless",
    "-dcp 8 --decode-context-parallel-size 4",
    "--max-num-seqs",
    "--cpu-offload-gb 4 --cpu-offload-params experts",
    "another-model",
    "--unknown-thing 3",
    "--attention-config.sparse_mla_prefill_workspace_factor 2",
    "--limit-mm-per-prompt.image 2",
    "--language-model-only",
]
# The parser takes these values, and vLLM refuses them later: a check says so at once.
TAKEN_BY_THE_PARSER = {"--kv-cache-dtype q8_0", "--load-format gguf"}


def test_emitted_commands_parse(refusals: Refusals) -> None:
    commands: list[list[str]] = []
    for model, gpu, wish, nodes in PLANS:
        wanted = wishes(WishOptions(**wish), kv_types=KV_TYPES, takes=PINS)  # type: ignore[arg-type]
        machine = resolve(HardwareChoice(gpu=(gpu,), ram="2TiB"))
        engine = EngineOptions(engine="vllm", nodes=nodes)
        _, plan, made, _ = make(ModelOptions(model=model), machine, wanted, nodes_of(engine))
        assert made is not None, (
            model,
            gpu,
            [item.text for item in plan.findings if item.severity == "error"],
        )
        every = [made.argv, *(item.argv for item in made.further if item.argv[0] == "vllm")]
        assert len(every) == (nodes + 1 if nodes > 1 else 1)
        commands += [list(argv[2:]) for argv in every]
    said = refusals(commands)
    assert [(words, text) for words, text in zip(commands, said, strict=True) if text] == []
    for words in commands:  # and our own reader takes what the real one takes
        assert parse(["vllm", "serve", *words], flags.load()).refused == ()


def test_commands_are_read_as_vllm_reads_them(refusals: Refusals) -> None:
    commands = [["some/model", *text.split()] for text in WRITTEN]
    for text, words, said in zip(WRITTEN, commands, refusals(commands), strict=True):
        ours = parse(["vllm", "serve", *words], flags.load())
        refused = bool(ours.refused or ours.stray)
        assert refused == (said is not None), (text, said, ours.refused)
        doubtful = any(item.status == "doubtful" for item in ours.given)
        assert doubtful == (text in TAKEN_BY_THE_PARSER), text


def test_the_arguments_are_those_of_the_parser(arguments: list[dict[str, Any]]) -> None:
    ours = {
        (
            tuple(sorted((item.name, *item.aliases))),
            tuple(sorted(item.negations)),
            tuple(sorted(item.values)),
        )
        for item in flags.load().arguments
        if item.name != "--mm-processor-device"  # its values depend on the platform
    }
    theirs = {
        (
            tuple(item["spellings"]),
            tuple(item["negations"]),
            tuple(value for value in item["values"] if value != "None"),  # unset, which nobody writes
        )
        for item in arguments
        if "--mm-processor-device" not in item["spellings"]
    }
    assert ours == theirs
    assert len(arguments) == len(flags.load().arguments)
