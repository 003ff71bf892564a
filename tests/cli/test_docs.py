"""The documentation, against the program: commands run, options and ids are complete, numbers are right."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plan_llama.memory.graphs import GRAPHS
from plan_llama.memory.towers.families import FAMILIES
from tests.cli.conftest import Cli
from tests.gguf_builder import ORACLE, oracle_file
from tests.projector_cases import recorded
from tests.slow import slow_but

ROOT = Path(__file__).parents[2]
MODEL = "glm-5.1-ud-iq2"
MIB = 1024**2
PAGES = ("README.md", "docs/guides/first-plan.md", "docs/reference/json.md")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_sample_is_what_the_program_prints(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"<!-- sample: (.*?) -->\n```text\n\$ (.*?)\n(.*?)```", page("README.md"), re.DOTALL)
    assert found
    assert found[1] == found[2]
    monkeypatch.setenv("HOME", "/home/you")
    assert cli(*shlex.split(found[1])[1:]).out == found[3]


def documented() -> Iterator[str]:
    """The commands of the pages, each once."""
    for name in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page(name), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("plan-llama "):
                    yield line


DOCUMENTED = tuple(dict.fromkeys(documented()))


@pytest.mark.parametrize(
    "line",
    slow_but(DOCUMENTED, *(line for line in DOCUMENTED if not line.endswith("--json") and "*4" not in line)),
)
def test_every_command_of_the_documentation_runs(cli: Cli, line: str) -> None:
    assert len(DOCUMENTED) >= 10
    ended = cli(*shlex.split(line)[1:], *(["--force"] if "--write" in line else []))
    assert ended.code in (0, 3)
    assert ended.err == ""


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for path in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_first_screen_holds_what_ci_runs() -> None:
    for name in ("try_it", "test_it"):
        found = re.search(rf'^{name}="(.*)"$', page(".ci/run"), re.MULTILINE)
        assert found
        assert f"\n{found[1]}\n" in page("README.md")


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_reference_has_every_option_and_no_other(cli: Cli) -> None:
    shown: set[str] = set()
    commands = ("check", "verify", "doctor", "fits", "calibrate", "hardware", "models", "inspect")
    for command in ([], *([name] for name in commands)):
        for line in cli(*command, "--help").out.splitlines():
            found = re.match(r"  (?:(-\w), )?(--[a-z-]+)", line)
            if found:
                shown |= {name for name in found.groups() if name}
    rows = re.findall(r"^\| (`-[^|]*) \|", page("docs/reference/command-line.md"), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`(-[^`]+)`", row)}
    assert described == shown


def test_the_reference_has_every_key_of_pin(cli: Cli) -> None:
    keys = cli("--model", "glm-5.1", "--pin", "nothing=1").err.rpartition("a KEY of ")[2].strip().split(", ")
    row = next(line for line in page("docs/reference/command-line.md").splitlines() if "`--pin`" in line)
    listed = row.partition("fix one setting: ")[2].partition(".")[0].split(", ")
    assert sorted(listed) == sorted(keys)


# -- findings ---------------------------------------------------------------------------------------------------------


def finding_ids() -> Iterator[str]:
    """Every id that the source gives a Finding: constants, either branch of a choice, what a helper returns."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "Finding" not in text and "say(" not in text:
            continue  # parsing all of the source takes two seconds
        tree = ast.parse(text)
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in ("_say", "say"):
                yield from _texts(call.args[0], functions, path)
            elif name == "Finding":
                ident = next(keyword.value for keyword in call.keywords if keyword.arg == "id")
                if not (isinstance(ident, ast.Name) and ident.id == "ident"):  # the argument of _say
                    yield from _texts(ident, functions, path)


def _texts(node: ast.expr, functions: dict[str, ast.FunctionDef], path: Path) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, functions, path)
        yield from _texts(node.orelse, functions, path)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        for found in ast.walk(functions[node.func.id]):
            if isinstance(found, ast.Return) and found.value is not None:
                yield from _texts(found.value, functions, path)
    else:
        pytest.fail(f"{path}:{node.lineno}: an id that cannot be listed")


def test_the_reference_has_every_finding_and_no_other() -> None:
    described = re.findall(r"^\| `([a-z0-9-]+)` \|", page("docs/reference/findings.md"), re.MULTILINE)
    assert len(described) == len(set(described))
    assert set(described) == set(finding_ids())


# -- memory -----------------------------------------------------------------------------------------------------------


def rows() -> list[tuple[list[str], list[float]]]:
    """The table of measured buffers: arguments, and MiB of GPU weights, context, compute, host weights, compute."""
    found = re.findall(r"^\| `(-ngl [^`]+)` \|(.*)\|$", page("docs/concepts/memory.md"), re.MULTILINE)
    return [
        (flags.split(), [float(cell.replace(",", "")) for cell in cells.split("|")]) for flags, cells in found
    ]


def test_the_table_is_what_the_engine_counted() -> None:
    measured = {}
    for line in (ORACLE / "cases.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if (
            case["model"] == MODEL
            and case["set"] == "server"
            and len(case["sim_gpus"]) == 1
            and "bytes" in case
        ):
            measured[tuple(case["flags"])] = case["bytes"]
    assert len(rows()) >= 5
    for flags, numbers in rows():
        card, host = measured[tuple(flags)]["GPU0"], measured[tuple(flags)]["Host"]
        real = [card["model"], card["context"], card["compute"], host["model"], host["compute"]]
        assert [round(size / MIB, 1) for size in real] == numbers


@pytest.mark.slow
def test_the_table_is_what_the_program_computes(cli: Cli, home: Path) -> None:
    path = oracle_file(MODEL, home)
    for flags, numbers in rows():
        argv = (
            "check",
            "--gpu",
            "512GiB",
            "--ram",
            "1TiB",
            "--json",
            "--",
            "llama-server",
            "-m",
            str(path),
            *flags,
        )
        memory = cli(*argv).json["memory"]
        card, host = memory["devices"][0], memory["host"]
        ours = [card["weights_bytes"], card["context_bytes"], card["compute_bytes"]]
        ours += [host["weights_bytes"], host["compute_bytes"]]
        # real CUDA aligns each tensor to 128 bytes, the stand-in of the measurements to 32
        assert [size / MIB for size in ours] == pytest.approx(numbers, abs=0.2)


def test_the_projectors_of_the_page_are_what_the_engine_counted() -> None:
    measured = {case.model: case.answer for case in recorded() if case.id.endswith("-F16-gpu")}
    found = re.findall(r"^\| `([a-z0-9.-]+)` \|(.*)\|$", page("docs/concepts/memory.md"), re.MULTILINE)
    table = [(name, [float(cell.replace(",", "")) for cell in cells.split("|")]) for name, cells in found]
    assert len(table) >= 6
    for name, numbers in table:
        answer = measured[name]
        largest = answer["images"][0]
        start, grown = answer["compute"]["RPC0"], largest["compute"]["RPC0"]
        sizes = [answer["weights"]["RPC0"], start, grown, largest["compute"]["CPU"]]
        weights, *compute, host = [round(size / MIB, 1) for size in sizes]
        assert [weights, *compute, largest["tokens"], host] == numbers


def test_the_page_names_the_described_towers() -> None:
    listed = (
        page("docs/concepts/memory.md").partition("these types are described: ")[2].partition(" (also")[0]
    )
    assert re.findall(r"`([a-z0-9._]+)`", listed) == sorted(FAMILIES)


def test_the_cache_of_the_page() -> None:
    text = page("docs/concepts/memory.md")
    assert (512 + 64 + 128) * 2 * 78 == 109824
    assert "109,824 bytes per token" in text
    for tokens, size in re.findall(r"^\| ([0-9,]+) \| ([0-9,.]+) MiB \|$", text, re.MULTILINE):
        assert int(tokens.replace(",", "")) * 109824 / MIB == pytest.approx(
            float(size.replace(",", "")), abs=0.05
        )


def test_the_page_names_the_described_architectures() -> None:
    names = re.findall(r"^- `([a-z0-9_-]+)`$", page("docs/reference/architectures.md"), re.MULTILINE)
    assert sorted(names) == sorted(GRAPHS)


@pytest.mark.slow
def test_the_assumptions_and_margins_of_the_page(cli: Cli) -> None:
    answer = cli(
        *("--model", "glm-5.1", "--quant", "UD-IQ2_M", "--gpu", "24GiB", "--ram", "256GiB", "--json")
    ).json
    memory = answer["memory"]
    assert memory["devices"][0]["overhead_bytes"] == 630 * MIB
    ram, card = memory["pools"]
    assert card["margin_bytes"] == 1024 * MIB
    assert ram["margin_bytes"] == int(256 * 1024 * MIB * 0.06)


def test_a_layers_experts_and_the_rest() -> None:
    """`about 2.7 GiB of experts`, `about 160 MiB`, `12.3 GiB`: of the mix that was measured."""
    with_all, without = (numbers[0] for _, numbers in (rows()[2], rows()[0]))
    assert (with_all - without) / 75 / 1024 == pytest.approx(2.7, abs=0.05)
    assert without / 1024 == pytest.approx(12.3, abs=0.05)
    # what is not experts, less the output head, over the layers
    assert without / 79 == pytest.approx(160, abs=5)


# -- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan-llama` and `python3` on PATH, as after an installation."""
    (tmp_path / "bin").mkdir()
    for name, words in (("plan-llama", "-m plan_llama "), ("python3", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n', encoding="utf-8")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def example(*argv: str) -> str:
    done = subprocess.run(
        argv, cwd=ROOT / "examples", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
def test_example_three_machines() -> None:
    lines = example("sh", "plan-for-three-machines.sh").splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["rtx4090-128", "pages-from-disk"],
        ["rtx-pro-6000-512", "fits"],
        ["mac-studio-m3-ultra-512", "fits"],
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
def test_example_guide() -> None:
    text = example("sh", "check-a-guide.sh")
    assert "--mlock: removed" in text
    assert text.endswith("The command would not run; the corrected one is above.\n")


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
def test_example_context() -> None:
    machine = ("--model", "glm-5.1", "--quant", "UD-IQ2_M", "--hardware", "mac-studio-m3-ultra-512")
    found = re.match(r"--ctx (\d+)  \(", example(sys.executable, "pick_context.py", "0.1", *machine))
    assert found
    assert int(found[1]) == 202752
