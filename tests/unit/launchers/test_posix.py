"""The launcher, run for real with a stand-in server, a stand-in nvidia-smi and a /proc of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import InputError
from plan_llama.launchers.posix import shell_launcher
from plan_llama.launchers.types import GpuNeed, LaunchNeeds, ModelFile, Recipe, SmallerContext
from plan_llama.launchers.writing import write
from plan_llama.units import GIB

# Prints its version as b11434 does, and otherwise what it was started with.
SERVER = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("version: 0.6.0-dev (build {{build}}, commit unknown)", file=sys.stderr))
print(json.dumps([sys.argv[1:], os.environ.get("CUDA_DEVICE_ORDER")]))
"""
# Columns as `nvidia-smi --query-gpu=index,uuid,memory.free --format=csv,noheader,nounits` prints them.
SMI = "#!/bin/sh\nprintf '0, GPU-aaaa, 1000\\n1, GPU-bbbb, 23000\\n'\n"
# 127.0.0.1:8080 and *:9090, listening, as the kernel writes them.
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 81021 1 0 100 0 0 10 0
   1: 00000000:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 81022 1 0 100 0 0 10 0
   2: 0100007F:1F91 0100007F:D5C2 01 00000000:00000000 00:00000000 00000000  1000 0 81023 1 0 100 0 0 10 0
"""


NAME = "start.sh"


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def launcher(
    folder: Path,
    model: str = "model.gguf",
    *,
    port: int = 18080,
    host: str = "127.0.0.1",
    gpus: tuple[GpuNeed, ...] = (),
    ram: int = 0,
    pageable: bool = False,
    locked: int = 0,
    build: int = 11434,
    smaller: tuple[SmallerContext, ...] = (),
) -> Path:
    """A launcher, its surroundings, and a model of nine bytes."""
    executable(folder / "bin/llama-server", SERVER.format(build=build))
    (folder / "proc/net").mkdir(parents=True, exist_ok=True)
    (folder / "proc/net/tcp").write_text(TCP, encoding="ascii")
    (folder / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   67108864 kB\n", encoding="ascii")
    (folder / "proc/self").mkdir(exist_ok=True)
    limits = "Max locked memory         8388608              8388608              bytes     \n"
    (folder / "proc/self/limits").write_text(limits, encoding="ascii")
    path = folder / model
    path.write_bytes(b"GGUF12345")
    command = LaunchCommand(
        engine="llama.cpp",
        build=11434,
        argv=("llama-server", "-m", str(path), "-c", "4096", "--host", host, "--port", str(port)),
        env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )
    needs = LaunchNeeds(
        files=(ModelFile(path=str(path), size_bytes=9),),
        gpus=gpus,
        ram_need_bytes=ram,
        planned_ram_bytes=250 * GIB if ram else 0,
        pageable=pageable,
        locked_bytes=locked,
    )
    recipe = Recipe(command=command, needs=needs, title=f"plan of {model}", context=4096, smaller=smaller)
    return write(folder / "out", shell_launcher(recipe), name=NAME, force=True)


def run(script: Path, *arguments: str, **env: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and the lines said."""
    home = script.parents[1]
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": path, "PLAN_LLAMA_PROC": str(home / "proc"), "PLAN_LLAMA_SYS": str(home / "sys"), **env},
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def gpu(index: int, need: int, planned: int = 24 * GIB, uuid: str | None = None) -> GpuNeed:
    return GpuNeed(
        index=index, name="RTX 3090", backend="cuda", uuid=uuid, need_bytes=need, planned_free_bytes=planned
    )


def test_starts_with_the_exact_words(tmp_path: Path) -> None:
    hostile = 'it\'s a \n"model" @CHECKS@ $(touch pwned) `x` \\ *.gguf'
    code, out, said = run(launcher(tmp_path, hostile), "--verbose", "a b")
    arguments, order = json.loads(out)
    assert (code, said, order) == (0, [], "PCI_BUS_ID")
    wanted = ["-m", str(tmp_path / hostile), "-c", "4096", "--host", "127.0.0.1", "--port", "18080"]
    assert arguments == [*wanted, "--verbose", "a b"]


def test_only_checks(tmp_path: Path) -> None:
    assert run(launcher(tmp_path), "--check") == (0, "", [])


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    script = launcher(tmp_path)
    (tmp_path / "model.gguf").unlink()
    code, out, said = run(script)
    assert (code, out) == (3, "")
    assert said == [
        f"plan-llama: {tmp_path / 'model.gguf'}: no such file; download it first",
        "plan-llama: not started: 1 of the checks failed; PLAN_LLAMA_FORCE=1 starts anyway",
    ]


def test_a_model_that_is_short_and_the_wish_to_start_anyway(tmp_path: Path) -> None:
    script = launcher(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    code, out, said = run(script)
    assert (code, out) == (3, "")
    assert "has 4 bytes, the plan was made for 9" in said[0]
    code, out, said = run(script, PLAN_LLAMA_FORCE="1")
    assert (code, len(said)) == (0, 1)
    assert "-m" in out


@pytest.mark.parametrize(
    ("host", "port", "extra", "free"),
    [
        ("127.0.0.1", 8080, [], False),
        ("127.0.0.2", 8080, [], True),
        ("0.0.0.0", 8080, [], False),  # noqa: S104  # the check is of this very case
        ("127.0.0.1", 9090, [], False),
        ("127.0.0.1", 8081, [], True),  # a connection, not a listener
        ("127.0.0.1", 8080, ["--port", "8082"], True),
    ],
)
def test_the_port(tmp_path: Path, host: str, port: int, extra: list[str], free: bool) -> None:
    code, _, said = run(launcher(tmp_path, host=host, port=port), *extra)
    assert (code == 0) is free
    assert free or said[0].startswith(f"plan-llama: port {port}: another program listens on it; ")


def test_gpu_memory(tmp_path: Path) -> None:
    executable(tmp_path / "bin/nvidia-smi", SMI)
    code, _, said = run(launcher(tmp_path, gpus=(gpu(0, 20 * GIB), gpu(1, 20 * GIB))))
    assert code == 3
    assert said[0] == (
        "plan-llama: GPU 0 (RTX 3090): 1.0 GiB free, the plan needs 20.0 GiB (24.0 GiB were free); "
        "end what uses it"
    )
    assert said[1] == (
        "plan-llama: GPU 1 (RTX 3090): 22.5 GiB free, less than the 24.0 GiB when planned; "
        "the 20.0 GiB needed still fit"
    )
    # a card is known by its UUID, wherever it has moved
    assert run(launcher(tmp_path, gpus=(gpu(0, 20 * GIB, 20 * GIB, "GPU-bbbb"),)))[::2] == (0, [])
    code, _, said = run(launcher(tmp_path, gpus=(gpu(5, 1 * GIB),)))
    assert (code, said) == (
        0,
        ["plan-llama: GPU 5 (RTX 3090): free memory cannot be read; not checked"],
    )


def test_amd_memory_from_sysfs(tmp_path: Path) -> None:
    for where in ("bus/pci/devices/0000:03:00.0", "class/drm/card1/device"):
        folder = tmp_path / "sys" / where
        folder.mkdir(parents=True)
        (folder / "mem_info_vram_total").write_text(f"{24 * GIB}\n", encoding="ascii")
        (folder / "mem_info_vram_used").write_text(f"{10 * GIB}\n", encoding="ascii")
    for address in ("0000:03:00.0", None):
        card = GpuNeed(
            index=0,
            name="RX 7900 XTX",
            backend="rocm",
            pci_bus_id=address,
            need_bytes=20 * GIB,
            planned_free_bytes=24 * GIB,
        )
        code, _, said = run(launcher(tmp_path, gpus=(card,)))
        assert code == 3
        assert "14.0 GiB free, the plan needs 20.0 GiB" in said[0]


def test_ram_and_locks(tmp_path: Path) -> None:
    code, _, said = run(launcher(tmp_path, ram=100 * GIB))  # 64 GiB are available
    assert code == 3
    assert "RAM: 64.0 GiB available, the plan needs 100.0 GiB (250.0 GiB were available)" in said[0]
    code, _, said = run(launcher(tmp_path, ram=100 * GIB, pageable=True, locked=64 * GIB))
    assert code == 0
    assert "read from disk" in said[0]
    assert "the plan locks 64.0 GiB; raise it" in said[1]
    code, _, said = run(launcher(tmp_path, ram=50 * GIB))
    assert (code, len(said)) == (0, 1)


def test_the_engine(tmp_path: Path) -> None:
    code, _, said = run(launcher(tmp_path, build=12000))
    assert code == 0
    assert "llama-server is build 12000, the plan was made for 11434" in said[0]
    script = launcher(tmp_path, build=0)  # built without a number
    assert run(script)[::2] == (0, [])
    (tmp_path / "bin/llama-server").unlink()
    code, _, said = run(script)
    assert code == 3
    assert said[0] == "plan-llama: llama-server: no such program; install llama.cpp b11434 or add it to PATH"


def rung(folder: Path, context: int, gpu_need: int, ram: int) -> SmallerContext:
    argv = ("llama-server", "-m", str(folder / "model.gguf"), "-c", str(context), "--port", "18080")
    return SmallerContext(context=context, argv=argv, gpu_need_bytes=(gpu_need,), ram_need_bytes=ram)


def test_a_smaller_context_where_memory_is_short(tmp_path: Path) -> None:
    executable(tmp_path / "bin/nvidia-smi", SMI)  # 23,000 MiB are free on the second card
    ladder = (
        rung(tmp_path, 3072, 23 * GIB, GIB),
        rung(tmp_path, 2048, 20 * GIB, GIB),
        rung(tmp_path, 1024, GIB, GIB),
    )
    script = launcher(tmp_path, gpus=(gpu(1, 24 * GIB),), ram=2 * GIB, smaller=ladder)
    code, out, said = run(script, "--alias", "x y")
    assert code == 0
    assert json.loads(out)[0][2:] == ["-c", "2048", "--port", "18080", "--alias", "x y"]
    assert said[0].startswith("plan-llama: GPU 1 (RTX 3090): 22.5 GiB free, the plan needs 24.0 GiB")
    assert said[-1] == "plan-llama: a context of 2048 tokens, not 4096: that fits into what is free now"
    assert run(script, "--check")[0] == 0
    code, out, said = run(script, PLAN_LLAMA_EXACT="1")
    assert (code, out) == (3, "")
    code, out, _ = run(script, PLAN_LLAMA_FORCE="1")
    assert json.loads(out)[0][2:4] == ["-c", "4096"]


def test_no_context_is_small_enough_or_something_else_is_wrong(tmp_path: Path) -> None:
    executable(tmp_path / "bin/nvidia-smi", SMI)
    ladder = (rung(tmp_path, 2048, 23 * GIB, GIB),)
    script = launcher(tmp_path, gpus=(gpu(1, 24 * GIB),), smaller=ladder)
    code, out, said = run(script)
    assert (code, out, len(said)) == (3, "", 2)  # the one about the planned context, and the end
    ladder = (rung(tmp_path, 2048, GIB, GIB),)
    script = launcher(tmp_path, gpus=(gpu(1, 24 * GIB),), smaller=ladder)
    (tmp_path / "model.gguf").unlink()
    code, out, said = run(script)
    assert (code, out) == (3, "")
    assert "no such file" in said[0]


@pytest.mark.parametrize(
    ("host", "extra", "env", "starts"),
    [
        ("0.0.0.0", [], {}, False),  # noqa: S104  # the check is of this very case
        ("192.168.1.5", [], {"LLAMA_API_KEY": "k"}, True),
        ("192.168.1.5", ["--api-key-file", "keys"], {}, True),
        ("127.0.0.1", ["--host", "::"], {}, False),
        ("127.0.0.1", ["--host", "localhost"], {}, True),
        ("192.168.1.5", ["--host", "/run/llama.sock"], {}, True),
    ],
)
def test_nobody_is_let_in_without_a_key(
    tmp_path: Path, host: str, extra: list[str], env: dict[str, str], starts: bool
) -> None:
    code, _, said = run(launcher(tmp_path, host=host), *extra, **env)
    assert (code == 0) is starts
    assert starts or "other machines would be let in without a key" in said[0]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    target = write(tmp_path, "one", name=NAME)
    assert target.stat().st_mode & 0o777 == 0o755
    with pytest.raises(InputError, match="is there already"):
        write(tmp_path, "two", name=NAME)
    assert target.read_text(encoding="utf-8") == "one"
    write(tmp_path, "two", name=NAME, force=True)
    assert target.read_text(encoding="utf-8") == "two"
    assert [item.name for item in tmp_path.iterdir()] == [target.name]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file/below", "three", name=NAME)


def test_no_word_with_a_nul() -> None:
    command = LaunchCommand(engine="llama.cpp", build=11434, argv=("llama-server", "a\0b"))
    with pytest.raises(InputError, match="NUL"):
        shell_launcher(Recipe(command=command, needs=LaunchNeeds(files=())))
