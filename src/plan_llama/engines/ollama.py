"""A plan for Ollama: the Modelfile, the environment of the server, and the commands around them.

Since 0.30 Ollama starts llama-server for every model. What the Modelfile or an OLLAMA_ variable says it writes into
that command line; the rest reaches llama-server as LLAMA_ARG_ variables, which it inherits from `ollama serve`, and
which then hold for every model of that server. Facts: profiles/engines/ollama.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from plan_llama.engines import modelfile, ollama_runner
from plan_llama.engines.commandline import ParsedArgument, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import FurtherCommand, LaunchCommand, LaunchFile
from plan_llama.engines.ollama_facts import ENGINE, facts
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.types import Settings
from plan_llama.models.types import ModelSpec

PORT = 11434
OWN_PORT = 11435
FILE_NAME = "Modelfile"

_HARMLESS = ("LLAMA_ARG_CACHE_RAM", "LLAMA_ARG_CTX_CHECKPOINTS")  # limits of one process, whatever its model
_SAMPLING = {
    "temperature": "temperature",
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
# Arguments that Ollama writes itself, or has no use for.
_OWN = frozenset(
    {"-m", "-c", "-np", "-ngl", "-b", "-ub", "-fa", "-ctk", "-ctv", "-lm", "-t", "-mm", "-fit", "--spec-type"}
    | {"--host", "--port", "--temp", "--top-p", "--top-k", "--min-p", "--repeat-penalty"}
    | {"--presence-penalty", "--frequency-penalty"}
)


@dataclass(slots=True)
class _Words:
    """What is gathered: the Modelfile's parameters, the server's environment, what neither can say."""

    parameters: list[tuple[str, str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def command(
    settings: Settings,
    *,
    model: ModelSpec,
    machine: Machine,
    sources: Sequence[str],
    server: LaunchCommand,
) -> tuple[LaunchCommand, list[Finding]]:
    """`ollama serve` with its environment, the Modelfile, and what is run after it.

    `server` is the llama-server command of the plan, written for Ollama's build; `sources` are the files of model and
    projector. Raises InputError for a path that a Modelfile cannot hold.
    """
    words = _Words()
    _model(words, settings, model, machine)
    _server(words, settings)
    _cards(words, settings, machine)
    table = FlagTable.load(facts().llama_cpp)
    for item in parse(server.argv, table=table).arguments:
        _inherited(words, item, settings)
    own = [name for name in words.env if name.startswith("LLAMA_ARG_") and name not in _HARMLESS]
    port = PORT
    env = {**words.env, **server.env}
    if own:
        port = OWN_PORT
        limits = {"LLAMA_ARG_FIT": "off", "OLLAMA_MAX_LOADED_MODELS": "1"}
        env = {"OLLAMA_HOST": f"127.0.0.1:{port}", **env, **limits}
    if model.file_bytes > 50 * 10**9:
        env |= {"OLLAMA_LOAD_TIMEOUT": "30m"}
    name = model_name(model)
    client = {"OLLAMA_HOST": f"127.0.0.1:{port}"} if own else {}
    text = modelfile.written(sources, words.parameters, comments=(f"{model.name} {model.quant}",))
    made = LaunchCommand(
        engine=ENGINE,
        build=facts().version,
        argv=("ollama", "serve"),
        env=MappingProxyType(env),
        files=(LaunchFile(name=FILE_NAME, text=text),),
        further=(
            FurtherCommand(
                what="Once, with the server running: give it the model",
                argv=("ollama", "create", name, "-f", FILE_NAME),
                env=client,
            ),
            FurtherCommand(what="Then", argv=("ollama", "run", name), env=client),
            FurtherCommand(what="See where it went", argv=("ollama", "ps"), env=client),
        ),
    )
    return made, [*_said(made, words, own, model), *_about_projector(settings, model, machine)]


def model_name(model: ModelSpec) -> str:
    """A name that Ollama takes, with the quant as its tag."""
    name = re.sub(r"[^a-z0-9._-]+", "-", model.name.lower()).strip("-._")[:80] or "model"
    return f"{name}:{re.sub(r'[^a-z0-9._-]+', '-', model.quant.lower()).strip('-._') or 'local'}"


def _model(words: _Words, settings: Settings, model: ModelSpec, machine: Machine) -> None:
    """The Modelfile's parameters."""
    put = words.parameters.append
    put(("num_ctx", str(settings.context // settings.parallel)))
    put(("num_batch", str(settings.ubatch)))
    most = model.int_param("block_count") + 1
    put(("num_gpu", str(min(settings.gpu_layers, most) if machine.gpus else 0)))
    if settings.threads is not None:
        put(("num_thread", str(settings.threads)))
    cards = [machine.gpus[i] for i in settings.devices or range(len(machine.gpus))]
    if not ollama_runner.reads_directly(machine, cards if settings.gpu_layers else []):
        put(("use_mmap", "false" if settings.load_mode == "none" else "true"))
        if settings.load_mode not in ("none", "mmap", "auto"):
            words.env["LLAMA_ARG_LOAD_MODE"] = settings.load_mode
    if settings.draft_layers:
        put(("draft_num_predict", str(settings.draft_tokens)))
    for key, value in model.sampling.items():
        if key in _SAMPLING:
            put((_SAMPLING[key], str(int(value)) if float(value).is_integer() else repr(float(value))))
        else:
            words.lost.append(f"the publisher's {key}")


def _server(words: _Words, settings: Settings) -> None:
    """The server's own variables."""
    words.env["OLLAMA_FLASH_ATTENTION"] = "1" if settings.flash_attn else "0"
    if settings.kv_type_k != settings.kv_type_v:
        words.lost.append(f"-ctk {settings.kv_type_k} with -ctv {settings.kv_type_v}")
    elif settings.kv_type_k != "f16":
        words.env["OLLAMA_KV_CACHE_TYPE"] = settings.kv_type_k
    if settings.parallel > 1:
        words.env["OLLAMA_NUM_PARALLEL"] = str(settings.parallel)


def _cards(words: _Words, settings: Settings, machine: Machine) -> None:
    """One card by its number among those of its kind; several by taking all that the server sees."""
    if len(machine.gpus) < 2 or not settings.gpu_layers:
        return
    one = None
    if settings.split_mode == "none":
        one = settings.main_gpu
    elif len(settings.devices) == 1:
        one = settings.devices[0]
    if one is not None:
        backend = machine.gpus[one].backend
        words.parameters.append(("main_gpu", str(sum(gpu.backend == backend for gpu in machine.gpus[:one]))))
        return
    words.env["OLLAMA_SCHED_SPREAD"] = "1"
    if len({gpu.backend for gpu in machine.gpus}) > 1:
        words.lost.append("cards of several backends: it uses those of one")


def _inherited(words: _Words, item: ParsedArgument, settings: Settings) -> None:
    """An argument that Ollama does not write: the variable of llama-server for it, or a loss."""
    argument = item.argument
    if argument is None or _OWN & set(argument.names):
        return
    one_card = any(name == "main_gpu" for name, _ in words.parameters)
    if {"-sm", "-mg", "-dev"} & set(argument.names) and (one_card or not settings.gpu_layers):
        return
    if "--mmproj-offload" in argument.names and not settings.gpu_layers:
        return
    if "--op-offload" in argument.names and not settings.gpu_layers:
        return  # with num_gpu 0 it starts llama-server without the library of the cards
    if argument.env is None:
        words.lost.append(item.words)
    elif item.values:
        words.env[argument.env] = item.values[0]
    else:
        words.env[argument.env] = "0" if item.negated else "1"


def _said(made: LaunchCommand, words: _Words, own: Sequence[str], model: ModelSpec) -> list[Finding]:
    said = []
    if words.lost:
        said.append(
            Finding(
                id="ollama-cannot-say",
                severity="error",
                text=f"neither a Modelfile nor a variable of Ollama's says: {'; '.join(words.lost)}",
                fix="the llama-server command below does",
            )
        )
    if own:
        said.append(
            Finding(
                id="ollama-own-server",
                severity="note",
                text=f"{', '.join(own)} reach{'es' if len(own) == 1 else ''} llama-server through the environment of "
                f"`ollama serve` only, and would hold for every model of that server: this one has the port {OWN_PORT} "
                "and one model to itself",
                fix=f"OLLAMA_HOST=127.0.0.1:{OWN_PORT} in front of every `ollama` command that means it",
            )
        )
    else:
        said.append(
            Finding(
                id="ollama-server-wide",
                severity="note",
                text=f"{', '.join(made.env)} hold for every model of the server",
                fix="where Ollama runs as a service, set them there (`systemctl edit ollama`) instead of starting it",
            )
        )
    if model.catalog_id and facts().cloud & {model.catalog_id}:
        said.append(
            Finding(
                id="ollama-cloud-tag",
                severity="warning",
                text=f"`ollama run {model.catalog_id}` is not this: Ollama's library has {model.catalog_id} as a cloud "
                "tag only, which runs on ollama.com and needs an account",
                fix="the Modelfile takes the GGUF of this machine",
            )
        )
    return said


def _about_projector(settings: Settings, model: ModelSpec, machine: Machine) -> list[Finding]:
    """Where Ollama puts a projector is its own decision."""
    if not settings.mmproj or not settings.mmproj_offload or not machine.gpus:
        return []
    cards = [machine.gpus[i] for i in settings.devices or range(len(machine.gpus))]
    most = model.int_param("block_count") + 1
    if not ollama_runner.projector_on_cpu(model, cards, min(settings.gpu_layers, most)):
        return []
    return [
        Finding(
            id="projector-on-cpu",
            severity="note",
            text="Ollama leaves the projector to the CPU where layers stay there or a card has little room: images are "
            "read more slowly, and its buffers lie in RAM instead of on the card",
        )
    ]


def with_server(made: LaunchCommand, server: LaunchCommand) -> LaunchCommand:
    """The plan with llama-server's own command beside it."""
    beside = FurtherCommand(
        what="The same without Ollama, which reads the file where it is", argv=server.argv, env=server.env
    )
    return replace(made, further=(*made.further, beside))
