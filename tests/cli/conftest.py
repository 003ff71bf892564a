"""The command line in this process, in a home of its own: nothing of the person who runs the tests is seen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plan_llama.cli.app import run
from plan_llama.hardware import memread
from plan_llama.memory.table import ModelTable
from plan_llama.models.types import ModelSpec

GIB = 1024**3
GLM = ("--model", "glm-5.1", "--quant", "UD-IQ2_M")
ONE_CARD = ("--gpu", "24GiB", "--ram", "256GiB", "--cpu-cores", "16")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON object that it must be; NaN and Infinity are no JSON."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} in the JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def flat(self) -> str:
        """Standard output without its line breaks."""
        return " ".join(self.out.split())


Cli = Callable[..., Ended]

_MEMORIES: dict[object, list[ModelTable]] = {}


def _with_what_others_learnt(table: ModelTable) -> None:
    """Shares what tables remember among all tests that plan the same tensors: graphs, above all."""
    spec = table.spec
    known = _MEMORIES.setdefault((spec.architecture, spec.quant, len(spec.tensors)), [])
    for other in known:
        if other.spec.tensors == spec.tensors and other.spec.hparams == spec.hparams:
            own = {"spec": spec, "projector": table.projector, "draft": table.draft}
            vars(table).update({**vars(other), **own})
            return
    known.append(table)


_plain_init = ModelTable.__init__


def _learned_init(table: ModelTable, spec: ModelSpec) -> None:
    _plain_init(table, spec)
    _with_what_others_learnt(table)


@pytest.fixture(autouse=True)
def _shared_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    # of tests of the command line only: those of the tables themselves need new ones
    monkeypatch.setattr(ModelTable, "__init__", _learned_init)


_RATES: dict[int, float] = {}
_plain_rate = memread.rate


def _rate_of_this_run(threads: int, total_bytes: int, window_s: float) -> float:
    if threads not in _RATES:
        _RATES[threads] = _plain_rate(threads, total_bytes, window_s)
    return _RATES[threads]


@pytest.fixture(autouse=True)
def _memory_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # a home of its own holds no measurement of this machine, and each takes half a second of every core
    monkeypatch.setattr(memread, "rate", _rate_of_this_run)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(
            ("LLAMA_", "GGML_", "HF_", "XDG_", "OLLAMA_", "PLAN_LLAMA_", "CUDA_", "HUGGINGFACE_")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(home)


@pytest.fixture
def home() -> Path:
    """The folder that the command line takes for the home folder, which is also the current one."""
    return Path.cwd()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line: `cli("--model", "glm-5.1")`."""

    def call(*argv: str) -> Ended:
        capsys.readouterr()
        code = run(argv)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call
