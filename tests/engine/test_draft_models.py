"""A server with a model that drafts for another one: the log names the buffers of both models and contexts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.doctor.evidence import is_host
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import device_memory
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import DeviceBytes
from plan_llama.models.spec import load
from plan_llama.units import MIB
from tests.engine import processes
from tests.engine.conftest import GpuSimulation
from tests.oracle_cases import machine_with

pytestmark = pytest.mark.engine

SIMPLE = "--spec-type draft-simple"


@pytest.mark.parametrize(
    ("cards", "model", "draft", "flags"),
    [
        ((), "llama-dense", "qwen3-dense", f"-c 4096 -np 2 {SIMPLE}"),
        (
            (8192,),
            "llama-dense",
            "qwen3-dense",
            f"-c 4096 -np 2 -ngl 99 -ngld 2 {SIMPLE} --spec-draft-n-max 16",
        ),
        (
            (8192,),
            "gemma3-dense",
            "gemma3-dense",
            f"-c 2048 -np 2 -kvu -ngl 99 -ctkd q8_0 -ctvd q8_0 {SIMPLE}",
        ),
        ((8192,), "qwen3moe-moe", "qwen3moe-moe", f"-c 4096 -np 4 -ngl 99 -cmoed {SIMPLE}"),
        ((8192,), "qwen3moe-moe", "llama-dense", "-c 4096 -np 1 -ngl 99 -cmoe"),  # loaded, and idle
        ((8192, 8192), "llama-dense", "llama-dense", f"-c 4096 -ngl 99 -ts 1,1 -devd RPC1 {SIMPLE}"),
        ((8192, 8192), "llama-dense", "llama-dense", f"-c 4096 -ngl 99 -ts 1,1 -devd none {SIMPLE}"),
        ((8192,), "llama-dense", "llama-dense", "-c 4096 -np 2 -ngl 99 --spec-type ngram-mod,ngram-simple"),
    ],
)
def test_both_models_are_counted(
    cards: tuple[int, ...],
    model: str,
    draft: str,
    flags: str,
    engine_bin: Path,
    sim_gpus: GpuSimulation,
    tiny_archs: dict[str, Path],
    tmp_path: Path,
) -> None:
    asked = ["-m", str(tiny_archs[model]), *flags.split(), "-fa", "on", "-nr", "-ub", "256"]
    spec = load(str(tiny_archs[model]))
    if "ngram" not in flags:
        asked += ["-md", str(tiny_archs[draft])]
        spec = replace(spec, draft=load(str(tiny_archs[draft])))
    log, port = tmp_path / "server.log", processes.free_port()
    with sim_gpus(cards, [0] * len(cards)) as (env, rpc):
        argv: list[str | Path] = [engine_bin / "llama-server", *rpc, *asked, "--no-warmup", "-fit", "off"]
        argv += ["-lm", "none", "-lv", "4", "--host", processes.LOOPBACK, "--port", str(port)]
        with processes.running(argv, env=env, log=log) as server:
            processes.wait_until(
                lambda: processes.ask(port, "/health") == {"status": "ok"},
                server,
                log,
                what="llama-server",
                timeout_s=60,
            )
    machine = machine_with(tuple((size, 0) for size in cards))
    words = [word.replace("RPC", "CUDA") for word in asked]
    parsed = parse(["llama-server", *words], table=FlagTable.load())
    settings = to_settings(parsed, model=spec, machine=machine).settings
    made = buffers(ModelTable(spec), settings, device_memory(machine))
    logged = in_log(log, rpc[1].split(",") if rpc else [])
    for index, part in enumerate((*made.devices, made.host)):
        name = f"RPC{index}" if index < len(cards) else "Host"
        for kind in ("weights", "context", "compute"):
            found, real = getattr(part, f"{kind}_bytes"), logged[name][kind]
            # the log rounds each of at most four buffers to 0.01 MiB
            assert found == pytest.approx(real, abs=0.03 * MIB), (name, kind)
    assert (made.draft is None) == ("ngram" in flags)
    if made.draft is not None:
        own = buffers(
            ModelTable(replace(spec, draft=None)), replace(settings, draft=None), device_memory(machine)
        )
        assert made.host == own.host + made.draft.host
        assert DeviceBytes() not in (made.draft.host, *made.draft.devices[:1]) or "-devd" in flags


@pytest.mark.parametrize("kind", ["draft-simple", "draft-eagle3"])
def test_states_are_kept_for_what_may_be_taken_back(
    kind: str, engine_bin: Path, tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """The model's own context is made before the one that drafts, which is none for EAGLE-3 and is refused."""
    words = ["-c", "4096", "-np", "2", "-fa", "on", "-nr", "--spec-type", kind, "--spec-draft-n-max", "5"]
    words += ["-m", str(tiny_archs["qwen35-dense"])]
    log, port = tmp_path / "server.log", processes.free_port()
    argv: list[str | Path] = [
        engine_bin / "llama-server",
        *words,
        "-md",
        tiny_archs["llama-dense"],
        "-fit",
        "off",
    ]
    argv += ["--no-warmup", "-lv", "4", "--host", processes.LOOPBACK, "--port", str(port)]
    with processes.running(argv, env=processes.engine_env(engine_bin), log=log) as server:
        processes.wait_until(
            lambda: b"loading draft model" in log.read_bytes(), server, log, what="llama-server", timeout_s=60
        )
    machine = machine_with(())
    spec = load(str(tiny_archs["qwen35-dense"]))
    settings = to_settings(
        parse(["llama-server", *words], table=FlagTable.load()), model=spec, machine=machine
    ).settings
    assert settings.draft is None
    made = buffers(ModelTable(spec), settings, []).host
    before = log.read_bytes().partition(b"loading draft model")[0]
    log.write_bytes(before)
    logged = in_log(log, [])["Host"]
    for part in ("context", "compute"):
        assert getattr(made, f"{part}_bytes") == pytest.approx(logged[part], abs=0.03 * MIB), part


def in_log(path: Path, endpoints: list[str]) -> dict[str, dict[str, int]]:
    """Bytes by device and kind; each stand-in for a card is a server with one device."""
    reader = LogReader(Book(()))
    reader.feed(path.read_bytes().split(b"\n"), "log")
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for item in reader.finish().starts[-1].buffers:
        kind = {"model": "weights"}.get(item.kind, item.kind)
        name = "Host" if is_host(item.device) else f"RPC{endpoints.index(item.endpoint)}"
        found[name][kind] += item.size_bytes
    return found
