"""Every launcher holds the words of its command, whatever is in them: written, and read back by a parser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from plan_llama.command_files import containers as read_containers
from plan_llama.command_files import presets, shell, unit, windows
from plan_llama.command_files.types import FoundCommand
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import InputError
from plan_llama.launchers import batch, containers, posix, powershell, routers, systemd
from plan_llama.launchers.types import GpuNeed, LaunchNeeds, ModelFile, Recipe
from plan_llama.units import GIB

DATA = Path(__file__).parents[2] / "data/launchers"
MODEL = "/srv/models/a model.gguf"
TAIL = ("--host", "127.0.0.1", "--port", "8080")
OPEN = "0.0.0.0"  # noqa: S104 - what a container listens on


def recipe(
    *words: str, model: str = MODEL, env: dict[str, str] | None = None, backend: str = "cuda"
) -> Recipe:
    command = LaunchCommand(
        engine="llama.cpp",
        build=11434,
        argv=("/opt/llama.cpp/llama-server", "-m", model, "-c", "4096", *words, *TAIL),
        env=env or {},
    )
    card = GpuNeed(
        index=0,
        name="a card",
        backend=backend,  # type: ignore[arg-type]  # one of the names
        uuid="GPU-1234-ab",
        need_bytes=20 * GIB,
        planned_free_bytes=24 * GIB,
    )
    needs = LaunchNeeds(
        files=(ModelFile(path=model, size_bytes=236_000_000_000),),
        gpus=(card,),
        ram_need_bytes=100 * GIB,
        planned_ram_bytes=250 * GIB,
    )
    return Recipe(command=command, needs=needs, title="a plan", context=4096)


def words(found: list[FoundCommand]) -> list[str]:
    (item,) = found
    assert all(word.known for word in item.words)
    return [word.text for word in item.words]


def inside(made: Recipe) -> list[str]:
    """The words of a command as they are in a container."""
    argv = ["llama-server", *made.command.argv[1 : -len(TAIL)]]
    argv[2] = f"/models/{Path(made.needs.files[0].path).name}"
    return [*argv, "--host", OPEN, "--port", "8080"]


# no lone surrogates: those stand for bytes that are no UTF-8
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
LINE = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=10)
SIGNS = r""" ' " $ % \ ` ^ & | ; # ! ~ ‘ ’ ü € 😀 $HOME ${X} %PATH% $(x) \\ \" -- {{x}} @x@ $$ %% on"""
NASTY = st.sampled_from([*SIGNS.split(" "), " ", "a b", "\x7f", "\t"])
WORDS = st.lists(st.lists(NASTY | LINE, max_size=4).map("".join), max_size=4)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@QUICK
@given(WORDS, st.lists(NASTY, max_size=3).map("".join))
def test_shell_unit_and_powershell_hold_every_word(more: list[str], name: str) -> None:
    made = recipe("--alias", *more, model=f"/srv/{name}x.gguf", env={"A": "".join(more)})
    argv = list(made.command.argv)
    assert words(shell.commands(posix.shell_launcher(made))) == ["exec", *argv]
    (item,) = unit.commands(systemd.unit(made, Path("/out"), checked=True))
    assert ([word.text for word in item.words], dict(item.env)) == (argv, dict(made.command.env))
    assert words(windows.powershell(powershell.script(made))) == argv


@QUICK
@given(WORDS)
def test_batch_holds_every_word(more: list[str]) -> None:
    made = recipe("--alias", *more)
    (item,) = [item for item in windows.batch(batch.script(made)) if item.words[-1].text != "--version"]
    assert [word.text for word in item.words] == [*made.command.argv, "%*"]


@QUICK
@given(WORDS, st.lists(NASTY, max_size=3).map("".join))
def test_compose_and_kubernetes_hold_every_word(more: list[str], name: str) -> None:
    made = recipe("--alias", *more, model=f"/srv/models {name}x.gguf", env={"A": "".join(more)})
    for text in (containers.compose(made), containers.kubernetes(made)):
        (item,) = read_containers.commands(text)
        assert [word.text for word in item.words] == inside(made)
        assert item.env["A"] == made.command.env["A"]
    service = yaml.safe_load(containers.compose(made))["services"]["llama-server"]
    assert service["volumes"][0]["source"] == str(Path(made.needs.files[0].path).parent).replace("$", "$$")


@QUICK
@given(WORDS)
def test_llama_swap_holds_every_word(more: list[str]) -> None:
    made = recipe("--alias", *more)
    if any("${" in word for word in more):
        with pytest.raises(InputError, match="macro"):
            routers.swap(made, "m")
        return
    text = routers.swap(made, "m")
    Draft7Validator(schema("llama-swap-config.json")).validate(yaml.safe_load(text))
    assert words(read_containers.commands(text)) == [
        *made.command.argv[: -len(TAIL)],
        *("--host", "127.0.0.1", "--port", "5800"),
    ]


def schema(name: str) -> Any:
    return json.loads((DATA / name).read_text("utf-8"))


@pytest.mark.parametrize("backend", ["cuda", "rocm", "vulkan", "sycl"])
def test_compose_files_are_as_their_schema_says(backend: str) -> None:
    made = recipe(backend=backend, env={"GGML_X": "1"})
    whole = yaml.safe_load(containers.compose(made))
    Draft7Validator(schema("compose-spec.json")).validate(whole)
    service = whole["services"]["llama-server"]
    kind = {"cuda": "-cuda", "rocm": "-rocm", "vulkan": "-vulkan", "sycl": "-intel"}[backend]
    assert service["image"] == f"ghcr.io/ggml-org/llama.cpp:server{kind}-b11434"
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    assert service["ulimits"] == {"memlock": {"soft": -1, "hard": -1}}
    assert service["volumes"][0]["bind"] == {"create_host_path": False}
    assert ("deploy" in service) is (backend == "cuda")
    Draft7Validator(schema("compose-spec.json")).validate(
        yaml.safe_load(containers.compose(recipe("--api-key-file", "/k", backend=backend)))
    )


def test_a_key_is_a_secret_and_never_in_a_file() -> None:
    made = recipe("--api-key-file", "/etc/llama key")
    whole = yaml.safe_load(containers.compose(made))
    assert whole["secrets"] == {"llama_api_key": {"file": "/etc/llama key"}}
    assert whole["services"]["llama-server"]["command"][-2:] == [
        "--api-key-file",
        "/run/secrets/llama_api_key",
    ]
    deployment, service = yaml.safe_load_all(containers.kubernetes(made))
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"] == {
        "name": "llama-server",
        "key": "api-key",
    }
    assert "--api-key-file" not in pod["containers"][0]["args"]
    assert "type" not in service["spec"]  # reached from within the cluster only


def test_kubernetes_asks_for_what_the_plan_takes_and_looks_at_the_files(tmp_path: Path) -> None:
    import subprocess

    file = tmp_path / "a $(model).gguf"
    file.write_bytes(b"12345")
    made = recipe(model=str(file))
    made = replace(made, needs=replace(made.needs, files=(ModelFile(path=str(file), size_bytes=5),)))
    deployment = next(iter(yaml.safe_load_all(containers.kubernetes(made))))
    for document in yaml.safe_load_all(containers.kubernetes(made)):
        Draft7Validator(schema("kubernetes-1.31.json")).validate(document)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {
        "requests": {"memory": "102400Mi"},
        "limits": {"nvidia.com/gpu": "1"},
    }
    assert pod["volumes"][0]["hostPath"] == {"path": str(tmp_path), "type": "Directory"}
    look = [word.replace("$$", "$") for word in pod["initContainers"][0]["command"]]
    for size, code in ((5, 0), (6, 1)):
        argv = [*look[:4], str(file), str(size)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == code
    assert "has 5 bytes, the plan was made for 6" in done.stderr


def test_presets_hold_the_command_with_its_overrides_in_order() -> None:
    made = recipe(
        *(
            "-ngl",
            "all",
            "-ot",
            r"blk\.(3|4)\.ffn_.*_exps.=CUDA1",
            "-ncmoe",
            "2",
            "--no-op-offload",
            "-fa",
            "on",
        ),
        *("--api-key-file", "/k"),
    )
    (item,) = presets.commands(routers.preset(made, "a:b]c"), FlagTable.load())
    found = [word.text for word in item.words]
    place = found.index("-ot")
    # the router sorts arguments by name: what counts by its place is in one of them
    assert (
        found[place + 1]
        == r"blk\.(3|4)\.ffn_.*_exps.=CUDA1,blk\.([01])\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
    )
    assert found[:place] == [
        *("llama-server", "-m", MODEL, "-c", "4096", "-ngl", "all", "--no-op-offload", "-fa", "on"),
    ]
    assert not {"--host", "--port", "--api-key-file", "-ncmoe"} & set(found)
    assert item.where.startswith("section a-b-c,")


@pytest.mark.parametrize("name", ["/m ;x.gguf", "/m #x.gguf", "/m.gguf ", "/a\nb.gguf"])
def test_presets_refuse_what_their_grammar_cannot_hold(name: str) -> None:
    with pytest.raises(InputError, match="cannot hold this value"):
        routers.preset(recipe(model=name), "m")


def test_what_a_format_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="line break"):
        batch.script(recipe("a\nb"))
    with pytest.raises(InputError, match="quote"):
        batch.script(recipe(model='/a"b.gguf'))
    for make in (containers.compose, powershell.script, batch.script):
        with pytest.raises(InputError, match="UTF-8"):
            make(recipe(model="/a\udcff.gguf"))
    with pytest.raises(InputError, match="no image"):
        containers.compose(recipe(backend="metal"))
