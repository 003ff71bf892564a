"""What vLLM 0.33 refuses to start with, and what it starts with at a price.

Source: vllm/config/model.py (verify_with_parallel_config), parallel.py, scheduler.py, vllm.py and the quantisation
methods under vllm/model_executor/layers/quantization/, vLLM 0.33.0; tests/data/vllm holds its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from plan_llama import catalog
from plan_llama.findings import Finding
from plan_llama.memory.vllm.backends import NoBackend, attention_of, backend_for
from plan_llama.memory.vllm.budget import Card, Start
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.models.types import Tensor

_BLOCK = 128  # FP8 scales are for 128 x 128 weights
_SLICED = re.compile(r"blk\.\d+\.(attn_(q|q_b|k|v|output)|ffn_(gate|up|down)(_shexp|_exps)?)\.weight$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A start on a machine: what the rules ask beside memory. `card` None is a machine without a GPU."""

    checkpoint: Checkpoint
    start: Start
    card: Card | None
    gpus: int  # of one node
    nodes: int = 1
    kv_dtype: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None  # --quantization, where it was given
    executor: str | None = None
    balanced_experts: bool = False  # --enable-eplb
    external_lb: bool = False
    long_context: bool = False  # VLLM_ALLOW_LONG_MAX_MODEL_LEN=1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formats:
    least: dict[str, int]
    native: dict[str, int]
    rocm: tuple[str, ...]
    bfloat16: int


@cache
def _formats() -> _Formats:
    path = catalog.root() / "engines" / "vllm" / "quantisation.toml"
    table = catalog.Table(catalog.load(path), str(path))
    for key in ("engine", "version", "source"):
        table.take(key, str)
    least, native = table.table("least"), table.table("native")
    found = _Formats(
        least={key: least.take(key, int) for key in least.keys()},  # noqa: SIM118 - a method of ours
        native={key: native.take(key, int) for key in native.keys()},  # noqa: SIM118
        rocm=table.strings("rocm"),
        bfloat16=table.take("bfloat16", int),
    )
    for part in (least, native, table):
        part.done()
    return found


def refusals(setup: Setup) -> list[Finding]:
    """Every reason why this start fails, before any weight is read."""
    return [*_card(setup), *_parallel(setup), *_slices(setup), *_lengths(setup)]


def _say(ident: str, text: str, fix: str = "") -> Finding:
    return Finding(id=ident, severity="error", text=text, fix=fix)


def _card(setup: Setup) -> Iterator[Finding]:
    card, checkpoint = setup.card, setup.checkpoint
    if card is None:
        yield _say(
            "vllm-no-gpu",
            "vLLM's published wheel needs a CUDA or ROCm GPU, and there is none",
            "--engine llama.cpp",
        )
        return
    method, number, known = checkpoint.quantisation.method, card.number, _formats()
    if setup.quantization is not None and method and not _same_method(setup.quantization, method):
        yield _say(
            "vllm-quantization-mismatch",
            f"the checkpoint is {method}, and --quantization says {setup.quantization}",
            "leave --quantization out: it is read from the checkpoint",
        )
    least = known.least.get(method)
    if method and number is not None and least is not None and number < least:
        yield _say(
            "vllm-quantisation-capability",
            f"a {_format(checkpoint)} checkpoint needs compute capability {_dotted(least)}, and {card.name} has "
            f"{card.capability}",
            _instead(number),
        )
    if method and card.gfx is not None and method not in known.rocm:
        yield _say(
            "vllm-quantisation-rocm", f"vLLM on ROCm does not take {method} checkpoints", "a BF16 or FP8 one"
        )
    if number is not None and number < known.bfloat16 and setup.dtype == "bfloat16":
        yield _say(
            "vllm-bf16-capability",
            f"bfloat16 needs compute capability 8.0, and {card.name} has {card.capability}",
            "--dtype half",
        )
    try:
        backend = backend_for(checkpoint.spec, card, setup.kv_dtype)
    except NoBackend as reason:
        sparse = attention_of(checkpoint.spec) == "sparse"
        fix = (
            "llama.cpp runs this model on any card: --engine llama.cpp" if sparse else "--kv-cache-dtype auto"
        )
        yield _say("vllm-no-attention-backend", f"no valid attention backend: {reason}", fix)
        return
    if (
        setup.start.ranks.context > 1
        and attention_of(checkpoint.spec) == "sparse"
        and backend.kv_dtype == "auto"
    ):
        yield _say(
            "vllm-dcp",
            "decode context parallelism of sparse attention needs an FP8 KV cache",
            "--kv-cache-dtype fp8",
        )
    if setup.kv_dtype in ("float16", "bfloat16") and setup.kv_dtype != _dtype(setup):
        yield _say(
            "vllm-kv-dtype",
            f"a KV cache of {setup.kv_dtype} does not go with weights of {_dtype(setup)}",
            "--kv-cache-dtype auto",
        )


def _parallel(setup: Setup) -> Iterator[Finding]:
    spec, ranks = setup.checkpoint.spec, setup.start.ranks
    heads = spec.int_param("attention.head_count")
    heads_kv = spec.int_param("attention.head_count_kv", heads)
    latent = attention_of(spec) != "heads"
    if heads % ranks.tensor:
        fits = ", ".join(str(n) for n in range(1, 65) if heads % n == 0)
        yield _say(
            "vllm-tp-heads",
            f"{heads} attention heads cannot be divided by a tensor parallel size of {ranks.tensor}",
            f"--tensor-parallel-size of {fits}",
        )
    elif not latent and heads_kv % ranks.tensor and ranks.tensor % heads_kv:
        yield _say(
            "vllm-tp-heads",
            f"{heads_kv} KV heads and a tensor parallel size of {ranks.tensor}: neither divides the other",
            "another --tensor-parallel-size",
        )
    if ranks.pipeline > spec.layers:
        yield _say("vllm-pp", f"{ranks.pipeline} pipeline stages for {spec.layers} layers", "fewer stages")
    experts = spec.int_param("expert_count", 0)
    if ranks.expert and not experts:
        yield _say(
            "vllm-ep", "expert parallelism needs a model with experts", "leave --enable-expert-parallel out"
        )
    if setup.balanced_experts and (not ranks.expert or ranks.tensor * ranks.data == 1):
        yield _say("vllm-eplb", "--enable-eplb needs --enable-expert-parallel and more than one rank")
    if setup.external_lb and not experts:
        yield _say("vllm-dp-external", "external load balancing is for models with experts only")
    if setup.nodes > 1 and setup.executor == "ray":
        yield _say(
            "vllm-nodes",
            "--nnodes is not for Ray",
            "leave --nnodes out, or --distributed-executor-backend mp",
        )
    if ranks.world % setup.nodes:
        yield _say(
            "vllm-nodes",
            f"{setup.nodes} nodes do not divide a world of {ranks.world} ranks",
            "TP x PP x DP must be a multiple of --nnodes",
        )
    elif ranks.world > setup.gpus * setup.nodes and setup.executor != "ray":
        yield _say(
            "vllm-world-size",
            f"{ranks.world} ranks (TP {ranks.tensor} x PP {ranks.pipeline} x DP {ranks.data}) need a GPU each, and "
            f"there {'is' if setup.gpus == 1 else 'are'} {setup.gpus * setup.nodes}",
            "smaller sizes, or --nodes",
        )
    yield from _context_parallel(setup, heads, heads_kv, latent=latent)


def _context_parallel(setup: Setup, heads: int, heads_kv: int, *, latent: bool) -> Iterator[Finding]:
    ranks = setup.start.ranks
    if ranks.context == 1:
        return
    if ranks.tensor % ranks.context:
        yield _say(
            "vllm-dcp",
            f"a decode context parallel size of {ranks.context} does not divide TP {ranks.tensor}",
            "a divisor of the tensor parallel size",
        )
    elif not latent and (ranks.tensor <= heads_kv or ranks.context > ranks.tensor // heads_kv):
        most = max(1, ranks.tensor // heads_kv)
        yield _say(
            "vllm-dcp",
            f"decode context parallelism can use the ranks that repeat KV heads: with {heads_kv} of them and TP "
            f"{ranks.tensor} at most {most}",
            f"--decode-context-parallel-size {most}",
        )
    elif not latent and heads // heads_kv % ranks.context:
        yield _say(
            "vllm-dcp",
            f"{heads // heads_kv} query heads per KV head cannot be divided by {ranks.context}",
            "--decode-context-parallel-size 1",
        )


def _slices(setup: Setup) -> Iterator[Finding]:
    """Quantised matrices are cut at whole blocks or groups of scales."""
    checkpoint, ranks = setup.checkpoint, setup.start.ranks
    q = checkpoint.quantisation
    step = _BLOCK if q.scheme == "fp8-block" else q.group if q.scheme in ("awq", "gptq", "int4") else 0
    if not step:
        return
    for tensor in _cut_matrices(checkpoint):
        name = tensor.name.split(".", 2)[2].removesuffix(".weight")
        experts = name.endswith("_exps")
        if experts and ranks.expert:
            continue
        over = ranks.tensor * (ranks.data if experts else 1)
        if ranks.expert and ranks.tensor > 1 and ranks.data > 1 and name.startswith("ffn_"):
            continue
        rows_cut = name.startswith(("attn_output", "ffn_down"))
        size = tensor.shape[0] if rows_cut else tensor.shape[1]
        if (not rows_cut and q.scheme != "fp8-block") or name in ("attn_k", "attn_v"):
            continue
        if size % over == 0 and size // over % step:
            yield _say(
                "vllm-tp-blocks",
                f"{name} of {size} is cut into {over} slices of {size // over}, which is not a multiple of the "
                f"{step} weights that share a scale",
                "a smaller --tensor-parallel-size, with --pipeline-parallel-size for the rest",
            )
            return


@lru_cache(maxsize=8)
def _cut_matrices(checkpoint: Checkpoint) -> tuple[Tensor, ...]:
    """One quantised matrix of each name and shape among those that TP slices."""
    found: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for tensor in checkpoint.spec.tensors:
        match = _SLICED.match(tensor.name)
        if match is not None and checkpoint.quantisation.applies_to(tensor.name):
            found.setdefault((match[1], tensor.shape), tensor)
    return tuple(found.values())


def _lengths(setup: Setup) -> Iterator[Finding]:
    spec, start = setup.checkpoint.spec, setup.start
    if spec.context_train and start.max_model_len > spec.context_train and not setup.long_context:
        yield _say(
            "vllm-max-model-len",
            f"--max-model-len {start.max_model_len:,} is more than the {spec.context_train:,} of the config.json",
            f"--max-model-len {spec.context_train}",
        )
    if start.max_num_batched_tokens < start.max_num_seqs:
        yield _say(
            "vllm-batch",
            f"--max-num-batched-tokens {start.max_num_batched_tokens} is less than --max-num-seqs "
            f"{start.max_num_seqs}",
            f"--max-num-seqs {start.max_num_batched_tokens}",
        )


def remarks(setup: Setup) -> list[Finding]:
    """What works and costs: formats that the card unpacks, a cache that every rank repeats."""
    card, checkpoint, ranks = setup.card, setup.checkpoint, setup.start.ranks
    said = []
    native = _formats().native.get(checkpoint.quantisation.scheme)
    if card and card.number is not None and native is not None and card.number < native:
        said.append(
            Finding(
                id="vllm-not-native",
                severity="note",
                text=f"{card.name} (compute capability {card.capability}) does not compute in {_format(checkpoint)}: "
                "the weights stay small, and the arithmetic runs in 16 bits",
            )
        )
    if card and card.number is not None and card.number < _formats().bfloat16 and _dtype(setup) == "bfloat16":
        said.append(
            Finding(
                id="vllm-bf16-capability",
                severity="warning",
                text=f"{card.name} (compute capability {card.capability}) has no bfloat16: vLLM falls back to float16, "
                "whose range some models leave",
                fix="--dtype half says so",
            )
        )
    if attention_of(checkpoint.spec) != "heads" and ranks.tensor > 1 and ranks.context == 1:
        said.append(
            Finding(
                id="vllm-mla-replicated",
                severity="note",
                text=f"latent attention has one KV head: each of the {ranks.tensor} ranks of TP holds the whole cache",
                fix="--decode-context-parallel-size, --pipeline-parallel-size or --data-parallel-size spread it",
            )
        )
    if (
        card
        and card.number is not None
        and 120 <= card.number < 130
        and attention_of(checkpoint.spec) == "sparse"
    ):
        said.append(
            Finding(
                id="vllm-sm120-sparse",
                severity="warning",
                text="sparse attention on compute capability 12.x works only with a FlashInfer that has its sparse "
                "MLA kernels; several reports of failures are open",
                fix="try it with the installed FlashInfer before relying on it",
            )
        )
    if card and card.gfx is not None:
        said.append(
            Finding(
                id="vllm-rocm-unchecked",
                severity="warning",
                text="vLLM's ROCm build is another wheel; its cache layout was not checked here",
                fix="VLLM_ROCM_USE_AITER=1, and compare the log's KV cache size with this plan",
            )
        )
    return said


def _dtype(setup: Setup) -> str:
    named = {"half": "float16", "float": "float32", "auto": setup.checkpoint.dtype}
    return named.get(setup.dtype, setup.dtype)


def _same_method(given: str, method: str) -> bool:
    """Spellings of one method: gptq_marlin and auto_gptq run gptq checkpoints."""
    plain = given.removeprefix("auto_").removesuffix("_marlin")
    return plain in (method, method.removeprefix("gpt_oss_")) or (given, method) == (
        "modelopt",
        "modelopt_fp4",
    )


def _format(checkpoint: Checkpoint) -> str:
    return {
        "fp8-block": "FP8",
        "fp8-channel": "FP8",
        "fp8-tensor": "FP8",
        "nvfp4": "NVFP4",
        "mxfp4": "MXFP4",
        "int8": "INT8",
        "int4": "INT4",
    }.get(checkpoint.quantisation.scheme, checkpoint.quantisation.method.upper())


def _dotted(number: int) -> str:
    return f"{number // 10}.{number % 10}"


def _instead(number: int) -> str:
    if number >= 75:
        return "an AWQ or GPTQ checkpoint of the same model, or --engine llama.cpp with a GGUF"
    return "--engine llama.cpp with a GGUF: vLLM's kernels start at compute capability 7.5"
