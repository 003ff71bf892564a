"""From a server that runs to a plan: which file it runs, as the process sees it, and what is said of its memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from plan_llama.cli import doctor_running
from plan_llama.doctor.report import Found
from plan_llama.hardware.processes import Group, Usage, Watch
from plan_llama.hardware.types import Cpu, Gpu, GpuProcess, Machine, Ram
from plan_llama.models.writer import write_header
from tests.cli.conftest import GIB
from tests.small_models import llama_like

MIB = 1024**2
SPEC = llama_like(layers=8, width=1024)
BOX = Machine(
    name="box",
    gpus=(
        Gpu(
            name="RTX 3090",
            vendor="nvidia",
            total_bytes=24 * GIB,
            free_bytes=20 * GIB,
            processes=(
                GpuProcess(pid=7, name="llama-server", used_bytes=2 * GIB),
                GpuProcess(pid=99, name="blender", used_bytes=2 * GIB),
            ),
        ),
    ),
    ram=Ram(total_bytes=64 * GIB, available_bytes=40 * GIB),
    cpu=Cpu(physical_cores=8, logical_cores=16),
)


@pytest.fixture
def process(tmp_path: Path) -> Path:
    """/proc/7 of a server in a container: its root is elsewhere, and its folder is /models there."""
    folder = tmp_path / "proc/7"
    (folder / "root/models").mkdir(parents=True)
    (folder / "fd").mkdir()
    (folder / "cwd").symlink_to("/models")
    write_header(SPEC, folder / "root/models/my-own.gguf")
    return tmp_path


def running(
    sysroot: Path, *words: str, watch: Watch | None = None, **variables: str
) -> doctor_running.Running:
    return doctor_running.running(
        7, ["llama-server", *words], variables, watch or watched(100 * MIB), sysroot=sysroot
    )


def watched(rss: int, limit: int | None = None) -> Watch:
    watch = Watch(7)
    watch.latest = {7: Usage(pid=7, private_bytes=rss // 2)}
    watch.rss_peak_bytes = watch.anonymous_peak_bytes = rss
    watch.groups = () if limit is None else (Group(where="/g", limit_bytes=limit, used_bytes=rss, kills=0),)
    return watch


@pytest.mark.parametrize("name", ["my-own.gguf", "./my-own.gguf", "/models/my-own.gguf"])
@pytest.mark.parametrize("argument", ["-m", "--model"])
def test_a_file_is_found_as_the_process_names_it(process: Path, argument: str, name: str) -> None:
    file = running(process, argument, name).file
    assert file is not None
    assert file.samefile(process / "proc/7/root/models/my-own.gguf")


def test_a_file_that_a_variable_names(process: Path) -> None:
    assert running(process, LLAMA_ARG_MODEL="my-own.gguf").file is not None
    assert running(process, "-m", "other.gguf", LLAMA_ARG_MODEL="my-own.gguf").file is None


def test_a_file_that_is_mapped_or_open(process: Path) -> None:
    """-hf, a presets file, Ollama's blobs: what is mapped most are the weights, and a projector is not them."""
    folder = process / "proc/7"
    blob = f"/blobs/sha256-{'0a' * 32}"
    for name in ("/models/mmproj-x.gguf", f"/models{blob}"):
        target = folder / "root" / name[1:]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((folder / "root/models/my-own.gguf").read_bytes()[:4096])
    (folder / "maps").write_text(
        "7f00-7f40 r--s 00000000 08:01 12 /models/mmproj-x.gguf\n"
        f"8000-8010 r--s 00000000 08:01 13 /models{blob}\n"
        "9000-9001 r-xp 00000000 08:01 14 /usr/lib/libc.so.6\n"
    )
    found = running(process, "-hf", "owner/repo:Q4_K_M").file
    assert found is not None
    assert found.name.startswith("sha256-")
    (folder / "maps").write_text("")
    assert running(process).file is None
    (folder / "fd/3").symlink_to("/models/my-own.gguf")
    found = running(process).file
    assert found is not None
    assert found.name == "my-own.gguf"


def test_the_machine_is_that_without_the_server_and_within_its_limits(process: Path) -> None:
    server = running(process, watch=watched(2 * GIB))
    machine = doctor_running.without(server, BOX)
    assert machine.gpus[0].free_bytes == 22 * GIB
    assert machine.ram.available_bytes == 41 * GIB
    bound = replace(server, watch=watched(2 * GIB, limit=8 * GIB))
    assert doctor_running.without(bound, BOX).ram.available_bytes == 8 * GIB


def test_a_command_that_was_watched_has_left_the_machine_as_it_was(process: Path) -> None:
    server = replace(running(process, watch=watched(2 * GIB, limit=8 * GIB)), ended=True)
    machine = doctor_running.without(server, BOX)
    assert machine.gpus == BOX.gpus
    assert machine.ram.available_bytes == 8 * GIB
    server.watch.latest = {7: Usage(pid=7, address_limit_bytes=3 * GIB, address_peak_bytes=2 * GIB)}
    assert doctor_running.without(server, BOX).ram.available_bytes == 3 * GIB


TROUBLE = Found(
    id="mmap-paging-thrash",
    severity="slow",
    confidence=0.8,
    title="",
    cause="",
    fix="",
    commands=(),
    evidence=(),
)


def test_a_command_that_fits_for_a_file_that_no_catalog_knows(process: Path) -> None:
    words = ("-m", "my-own.gguf", "-c", "4096", "-ngl", "0", "--api-key", "ge heim", "--alias", "mine")
    server = running(process, *words)
    planned = doctor_running.plan_of_running(server, BOX, [], build=11434, model=None, quant=None)
    assert planned.command is None
    assert {item.device for item in planned.compared} == {"gpu0", "RAM"}
    planned = doctor_running.plan_of_running(server, BOX, [TROUBLE], build=11434, model=None, quant=None)
    assert planned.command is not None
    argv = planned.command.argv
    assert argv[:3] == ("llama-server", "-m", "my-own.gguf")
    assert ("--alias", "mine") in pairwise(argv)
    assert "ge heim" not in str(planned)
    assert "-ngl" not in argv or argv[argv.index("-ngl") + 1] != "0"  # it fits on the card


def test_memory_beside_the_prediction(process: Path) -> None:
    """A card whose processes take something else than is predicted is said; RAM that is not touched yet is not."""
    words = ("-m", "my-own.gguf", "-c", "4096", "-ngl", "99", "--fit", "off", "--cache-ram", "0")
    server = running(process, *words)
    planned = doctor_running.plan_of_running(server, BOX, [], build=11434, model=None, quant=None)
    card = next(item for item in planned.compared if item.device == "gpu0")
    assert card.measured_bytes == 2 * GIB
    assert card.differs
    assert [item.id for item in planned.findings] == ["prediction-differs"]
    holder = GpuProcess(pid=7, name="llama-server", used_bytes=card.predicted_bytes)
    right = replace(BOX, gpus=(replace(BOX.gpus[0], processes=(holder,)),))
    assert (
        doctor_running.plan_of_running(server, right, [], build=11434, model=None, quant=None).findings == []
    )
    large = replace(server, watch=watched(3 * GIB))
    planned = doctor_running.plan_of_running(large, right, [], build=11434, model=None, quant=None)
    assert "RAM anonymous: 3.0 GiB measured" in planned.findings[0].cause


def test_pages_of_the_file_are_no_difference(process: Path) -> None:
    """As on an H200 (tests/data/cuda/server.jsonl): 17.6 GiB at its peak, nearly all of it the file."""
    words = ("-m", "my-own.gguf", "-c", "4096", "-ngl", "99", "--fit", "off", "--cache-ram", "0")
    watch = watched(300 * MIB)
    watch.rss_peak_bytes = 18427580 * 1024
    server = running(process, *words, watch=watch)
    planned = doctor_running.plan_of_running(server, BOX, [], build=11434, model=None, quant=None)
    ram = next(item for item in planned.compared if item.device == "RAM")
    assert (ram.kind, ram.measured_bytes, ram.differs) == ("anonymous", 300 * MIB, False)
    # what is not mapped is predicted with its weights
    unmapped = running(process, *words, "-ngl", "0", "--load-mode", "none", watch=watch)
    planned = doctor_running.plan_of_running(unmapped, BOX, [], build=11434, model=None, quant=None)
    more = next(item for item in planned.compared if item.device == "RAM")
    assert more.predicted_bytes > ram.predicted_bytes


def test_where_cuda_lies_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of NVIDIA set these, and a command needs none of them."""
    for name in (
        "CUDA_HOME",
        "CUDA_VERSION",
        "CUDA_PATH",
        "HIP_PATH",
        "CUDA_VISIBLE_DEVICES",
        "GGML_CUDA_NO_PINNED",
    ):
        monkeypatch.setenv(name, "1")
    environment = doctor_running.watched(["llama-server"], Watch(7)).environment
    assert {name for name in environment if name.startswith(("CUDA", "HIP"))} == {"CUDA_VISIBLE_DEVICES"}
    assert "GGML_CUDA_NO_PINNED" in environment


def test_nor_for_a_process_that_runs(process: Path) -> None:
    kept = running(
        process, CUDA_VERSION="13.0.2", CUDA_HOME="/usr/local/cuda", CUDA_VISIBLE_DEVICES="1"
    ).environment
    assert kept == {"CUDA_VISIBLE_DEVICES": "1"}


def test_what_is_no_model_and_what_is_no_llama_server(process: Path) -> None:
    unknown = running(process, "-m", "/home/alice/nothing.gguf")
    planned = doctor_running.plan_of_running(unknown, BOX, [TROUBLE], build=None, model=None, quant=None)
    assert "--model NAME" in planned.why_not
    assert "alice" not in planned.why_not
    other = replace(unknown, words=("python", "-m", "http.server"))
    planned = doctor_running.plan_of_running(other, BOX, [TROUBLE], build=None, model=None, quant=None)
    assert (planned.command, planned.compared, planned.why_not) == (None, (), "")
