"""What Ollama would start for a plan, against the real parser of llama-server."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from plan_llama.engines import modelfile, ollama, ollama_runner
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import command
from plan_llama.engines.older_builds import adapt
from plan_llama.engines.ollama_facts import facts
from plan_llama.memory.types import Settings
from tests.engine import processes
from tests.property.test_ollama_roundtrip import plans
from tests.unit.engine_fixtures import glm, machine

pytestmark = pytest.mark.engine


@given(plans())
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_its_arguments_and_variables_are_accepted(engine_bin: Path, plan: tuple[int, Settings]) -> None:
    """By b11434, which has all that Ollama's b10488 has of these. Devices are left out: there are none."""
    cards, wanted = plan
    here, model = machine(cards), replace(glm(), path="/models/glm.gguf")
    build = facts().llama_cpp
    server = command(wanted, model=model, machine=here, model_path="model.gguf")
    server, _ = adapt(server, FlagTable.load(build).listed("llama-server"), build)
    made, _ = ollama.command(wanted, model=model, machine=here, sources=["/models/glm.gguf"], server=server)
    started = ollama_runner.runner(modelfile.read(made.files[0].text), made.env, model=model, machine=here)
    argv = list(started.argv[1:])
    if "--device" in argv:
        place = argv.index("--device")
        del argv[place : place + 2]
    env = {
        name: ",".join(part.partition("=")[0] + "=CPU" for part in value.split(","))
        if name == "LLAMA_ARG_OVERRIDE_TENSOR"
        else value
        for name, value in started.env.items()
        if name != "LLAMA_ARG_DEVICE"
    }
    done = subprocess.run(
        [engine_bin / "llama-server", *argv, "--help"],
        env=processes.engine_env(engine_bin, **env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (argv, env, done.stderr[-500:])
