"""What a vLLM command means for a start: sizes, cache, cards; and what is to be said of its words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plan_llama.engines.vllm.flags import human_int
from plan_llama.engines.vllm.parsing import Command, json_value
from plan_llama.findings import Finding
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.vllm.budget import Card, Start, assumed, batch_defaults
from plan_llama.memory.vllm.weights import Ranks
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.solver.vllm.judge import card_of
from plan_llama.solver.vllm.rules import Setup
from plan_llama.units import GIB

_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A command as a start. `auto_length`: the context is to be the longest that fits."""

    setup: Setup
    gpus: tuple[Gpu, ...]
    findings: tuple[Finding, ...]
    auto_length: bool = False
    host: str | None = None
    api_key: bool = False


def words_findings(command: Command) -> list[Finding]:
    """What the parser refuses, and what it takes and vLLM then does not."""
    said = []
    for item in command.given:
        if item.status == "unknown":
            said.append(_say("flag-unknown-old-build", f"{item.words}: {item.reason}", item.fix))
        elif item.status == "bad-value" or item.status == "doubtful":
            said.append(_say("flag-bad-value", f"{item.words}: {item.reason}", item.fix))
        elif item.status == "duplicate":
            said.append(Finding(id="flag-deprecated", severity="warning", text=f"{item.words} {item.reason}"))
        elif item.argument is not None and item.argument.deprecated:
            said.append(
                Finding(id="flag-deprecated", severity="note", text=f"{item.words} does nothing any more")
            )
    if command.stray:
        text = f"{' '.join(command.stray)}: belongs to no argument"
        said.append(_say("flag-unknown-old-build", text, "one model, and every option with its --"))
    if command.model is None and command.value("--config") is None:
        said.append(_say("model-missing", "the command names no model", "vllm serve MODEL …"))
    if command.named_model and command.executable[-1:] == ("serve",):
        said.append(
            Finding(
                id="flag-deprecated",
                severity="note",
                text="vllm serve takes the model as its first word: --model will be removed",
            )
        )
    if command.value("--config") is not None:
        text = "what the file of --config sets is not read here"
        said.append(Finding(id="not-counted", severity="warning", text=text))
    return said


def read(command: Command, checkpoint: Checkpoint, machine: Machine) -> Reading:
    """The start that a command asks for, with vLLM's defaults for everything it does not say."""
    gpus = _visible(machine.gpus, command.env)
    card = card_of(gpus[0]) if gpus else None
    ranks = Ranks(
        tensor=_count(command, "--tensor-parallel-size"),
        pipeline=_count(command, "--pipeline-parallel-size"),
        data=_count(command, "--data-parallel-size"),
        expert=command.value("--enable-expert-parallel") == "on",
        context=_count(command, "--decode-context-parallel-size"),
    )
    trained = checkpoint.spec.context_train or (1 << 20)
    given = command.value("--max-model-len")
    auto = given is not None and given.lower() in ("auto", "-1")
    length = trained if given is None or auto else human_int(given) or trained
    sequences, batched = _batches(command, card, length)
    kv_bytes = command.value("--kv-cache-memory-bytes")
    utilisation = _number(command.value("--gpu-memory-utilization"), assumed().utilisation)
    start = Start(
        ranks=ranks,
        max_model_len=max(1, length),
        max_num_seqs=sequences,
        max_num_batched_tokens=batched,
        utilisation=utilisation if 0 < utilisation <= 1 else assumed().utilisation,
        kv_bytes=human_int(kv_bytes) if kv_bytes else None,
        eager=command.value("--enforce-eager") == "on",
        hybrid=command.value("--disable-hybrid-kv-cache-manager") != "on",
        drafts=_own_drafts(draft_method(command)),
        offload_bytes=int(_number(command.value("--cpu-offload-gb"), 0.0) * GIB),
    )
    setup = Setup(
        checkpoint=checkpoint,
        start=start,
        card=card,
        gpus=len(gpus),
        nodes=_count(command, "--nnodes"),
        kv_dtype=command.value("--kv-cache-dtype") or "auto",
        dtype=command.value("--dtype") or "auto",
        quantization=command.value("--quantization"),
        executor=command.value("--distributed-executor-backend"),
        balanced_experts=command.value("--enable-eplb") == "on",
        external_lb=command.value("--data-parallel-external-lb") == "on",
        long_context=command.env.get(_LONG) == "1",
    )
    host = command.value("--host")
    key = command.value("--api-key") is not None or "VLLM_API_KEY" in command.env
    return Reading(
        setup=setup,
        gpus=gpus,
        findings=(*_said(command, utilisation), *_exposed(host, key=key)),
        auto_length=auto,
        host=host,
        api_key=key,
    )


def _said(command: Command, utilisation: float) -> Iterable[Finding]:
    if not 0 < utilisation <= 1:
        yield _say(
            "flag-bad-value",
            f"--gpu-memory-utilization {utilisation:g}: a share of the card's memory, above 0 and at most 1",
            "--gpu-memory-utilization 0.92",
        )
    method = draft_method(command)
    if method and not _own_drafts(method):
        yield Finding(
            id="not-counted",
            severity="warning",
            text=f"what drafting with {method} takes (another model, or its tables) is not counted",
        )
    for name in ("--kv-offloading-size", "--enable-lora", "--offload-group-size"):
        if command.value(name) not in (None, "off", "0"):
            yield Finding(id="not-counted", severity="warning", text=f"what {name} takes is not counted")


def draft_method(command: Command) -> str:
    """How the command drafts tokens: `mtp`, `eagle3`, …; empty where it does not."""
    given = str(json_value(command.value("--speculative-config")).get("method") or "")
    for item in command.given:
        if item.spelling == "--speculative-config.method" or item.spelling == "--spec-method":
            given = (item.values or ("",))[-1]
        elif item.spelling.startswith(("--speculative-config.", "--spec-model", "-sc")) and not given:
            given = "draft_model"
    return given


def _own_drafts(method: str) -> bool:
    """Whether the model drafts with blocks of its own."""
    return method == "mtp" or method.endswith("_mtp")


def _exposed(host: str | None, *, key: bool) -> Iterable[Finding]:
    if (host or "") not in ("127.0.0.1", "localhost", "::1") and not key:
        where = "every address (vLLM's default)" if host is None else host
        yield Finding(
            id="no-api-key",
            severity="warning",
            text=f"the server listens on {where} without a key: whoever reaches the port can use it",
            fix="--host 127.0.0.1, or --api-key with a proxy that encrypts",
        )


def _batches(command: Command, card: Card | None, length: int) -> tuple[int, int]:
    """Sequences and tokens of a batch: a default gives way to what is said of the other (EngineArgs)."""
    default_sequences, default_batched = batch_defaults(card) if card else (256, 2048)
    said_sequences, said_batched = command.value("--max-num-seqs"), command.value("--max-num-batched-tokens")
    sequences = human_int(said_sequences) if said_sequences else None
    batched = human_int(said_batched) if said_batched else None
    if batched is None:
        batched = default_batched
        if command.value("--performance-mode") == "throughput":
            batched *= 2
        if command.value("--enable-chunked-prefill") == "off":
            batched = max(batched, length)
        batched = max(batched, sequences or 0)
    if sequences is None:
        sequences = min(default_sequences, batched)
    return max(1, sequences), max(1, batched)


def _visible(gpus: tuple[Gpu, ...], env: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The cards that the command's environment leaves; by UUID they are not told apart."""
    text = next((env[name] for name in _VISIBLE if name in env), None)
    if text is None:
        return gpus
    places = [part.strip() for part in text.split(",") if part.strip()]
    if all(part.isdigit() for part in places):
        return tuple(gpus[int(part)] for part in places if int(part) < len(gpus))
    return gpus[: len(places)]


def _count(command: Command, name: str) -> int:
    found = human_int(command.value(name) or "")
    return found if found is not None and 0 < found < 1 << 16 else 1


def _number(text: str | None, default: float) -> float:
    try:
        return float(text) if text is not None else default
    except ValueError:
        return default


def _say(ident: str, text: str, fix: str) -> Finding:
    return Finding(id=ident, severity="error", text=text, fix=fix)
