"""The flag table, the reader and the written commands against the real parsers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from plan_llama.engines.arguments import Argument
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import command
from plan_llama.engines.other_programs import others
from plan_llama.memory.types import Settings
from tests.engine import record_commands
from tests.property.test_command_roundtrip import plans
from tests.unit.engine_fixtures import glm, machine

pytestmark = pytest.mark.engine

SAMPLE = {"int": "1", "uint": "1", "float": "0.5", "floats": "1", "uints": "1", "ranges": "1", "bools": "1"}
# Arguments that end the program at once, and those that would go to the network.
SPECIAL = {"--help", "--version", "--cache-list", "--list-devices", "--completion-bash", "--rpc"}
SPECIAL |= {"--model-url", "--docker-repo", "--hf-repo", "--hf-file", "--spec-draft-hf", "--mmproj-url"}
FILES = (
    "--file",
    "--system-prompt-file",
    "--binary-file",
    "--grammar-file",
    "--json-schema-file",
    "--api-key-file",
)
OTHER = {
    "--override-tensor": "a=CPU",
    "--spec-draft-override-tensor": "a=CPU",
    "--override-kv": "a=int:1",
    "--logit-bias": "1+1",
    "--lora-scaled": "a:1",
    "--control-vector-scaled": "a:1",
    "--spec-type": "none",
    "--cpu-mask": "ff",
    "--cpu-mask-batch": "ff",
    "--cpu-range": "0-1",
    "--cpu-range-batch": "0-1",
    "--cpu-mask-draft": "ff",
    "--cpu-range-draft": "0-1",
    "--cpu-mask-batch-draft": "ff",
    "--device": "none",
    "--spec-synth-len": "1",
    "--spec-synth-rates": "0.5",
    "--json-schema": "{}",
    "--chat-template-kwargs": "{}",
    "--reasoning-format": "none",
    "--reasoning-effort": "low",
    "-pg": "1,1",
    "--output": "json",
    "--output-err": "json",
}


def exit_code(engine_bin: Path, program: str, arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [str(engine_bin / program), *arguments, "--help"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stderr[:400]


def value_of(argument: Argument, folder: Path) -> list[str]:
    """Words that the argument should take, by the table's own account of it."""
    if argument.kind in ("flag", "switch"):
        return []
    if argument.kind in ("choice", "choices"):
        return [argument.choices[0]]
    if argument.kind == "devices":
        return ["none"]
    for name in argument.names:
        if name in OTHER:
            return [OTHER[name]]
        if name in FILES:
            return [str(folder / "empty.json")]
        if name.endswith(("-dir", "-path", "--path")):
            return [str(folder)]
    if argument.kind == "strings":
        return ["1", "2"]
    return [SAMPLE.get(argument.kind, str(folder / "empty.json"))]


@pytest.mark.parametrize("program", ["llama-server", "llama-cli", "llama-fit-params", "llama-bench"])
def test_every_argument_of_the_table_is_accepted(engine_bin: Path, tmp_path: Path, program: str) -> None:
    (tmp_path / "empty.json").write_text("{}", encoding="utf-8")
    table = FlagTable.load(11434)
    lines = [
        [name, *value_of(argument, tmp_path)]
        for argument in table.arguments
        if program in argument.programs and not argument.removed and not SPECIAL & set(argument.names)
        for name in (*argument.names, *argument.negative)
    ]
    assert len(lines) > 40
    refused = []
    for start in range(0, len(lines), 25):  # many at once; only a batch that fails is taken apart
        batch = lines[start : start + 25]
        if exit_code(engine_bin, program, [word for line in batch for word in line])[0]:
            refused += [(line, *exit_code(engine_bin, program, line)) for line in batch]
    assert [(entry[0], entry[2][:90]) for entry in refused if entry[1]] == []


def test_the_table_holds_every_argument_of_the_help_text(engine_bin: Path) -> None:
    table = FlagTable.load(11434)
    for program in ("llama-server", "llama-fit-params"):
        done = subprocess.run(
            [str(engine_bin / program), "--help"], capture_output=True, text=True, timeout=20, check=True
        )
        spelled = set()
        for line in done.stdout.splitlines():
            if line.startswith("-") and not line.startswith("---"):
                words = line[:200].split("  ")[0].replace(",", " ").split()
                spelled |= {word for word in words if re.match(r"--?[A-Za-z]", word)}
        assert len(spelled) > 100
        assert {name for name in spelled if table.lookup(name, program) is None} == set()


def test_the_captured_verdicts_still_hold(engine_bin: Path) -> None:
    captured = json.loads(
        (Path(__file__).parents[1] / "data/engines/accepted_b11434.json").read_text(encoding="utf-8")
    )
    wrong = [
        case
        for case in captured
        if exit_code(engine_bin, case["program"], case["arguments"])[0] != case["exit"]
    ]
    assert wrong == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans().filter(lambda plan: plan[0] == 0))
def test_written_commands_are_accepted(engine_bin: Path, plan: tuple[int, Settings]) -> None:
    made = command(plan[1], model=glm(), machine=machine(0), model_path="/models/x.gguf")
    assert exit_code(engine_bin, "llama-server", list(made.argv[1:])) == (0, "")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans().filter(lambda plan: plan[0] == 1))
def test_written_placements_are_accepted(engine_bin: Path, plan: tuple[int, Settings]) -> None:
    # this engine has no card: its host buffer stands in for the card's
    made = command(
        plan[1], model=glm(), machine=machine(1), model_path="/models/x.gguf", device_names=["CPU"]
    )
    code, said = exit_code(engine_bin, "llama-server", list(made.argv[1:]))
    assert code == 0, said


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans().filter(lambda plan: plan[0] < 2))
def test_the_other_programs_take_the_same_placement(engine_bin: Path, plan: tuple[int, Settings]) -> None:
    names = ["CPU"] if plan[0] else None  # as above
    made = command(
        plan[1], model=glm(), machine=machine(plan[0]), model_path="/models/x.gguf", device_names=names
    )
    for item in others(made, context=4096, prompt_tokens=512):
        code, said = exit_code(engine_bin, item.argv[0], list(item.argv[1:]))
        assert code == 0, (item.argv, said)


def test_launchers_pass_shellcheck(tmp_path: Path) -> None:
    from tests.unit.launchers.test_posix import launcher

    tool = shutil.which("shellcheck")
    assert tool is not None, "install shellcheck (apt-get install shellcheck)"
    script = launcher(tmp_path, 'it\'s a \n"model" $(id) `id`.gguf')
    done = subprocess.run([tool, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", record_commands.files(), ids=lambda path: path.name)
def test_published_commands_are_still_judged_so(engine_bin: Path, file: Path) -> None:
    cases = json.loads((record_commands.FOLDER / "cases.json").read_text(encoding="utf-8"))
    assert record_commands.exits(engine_bin, file) == cases[file.name]["exit"]
