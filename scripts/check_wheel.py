#!/usr/bin/env python3
"""Build the wheel, look into it, and run it in a fresh environment that cannot see the checkout.

usage: check_wheel.py

Exit code 0 where the wheel holds every profile and plans GLM-5.1 for a described machine. Needs only pip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAN = ("--model", "glm-5.1", "--quant", "UD-IQ2_M", "--gpu", "24GiB", "--ram", "256GiB", "--json")


class WheelError(Exception):
    """The wheel is not what it should be; the text says how."""


def run(argv: list[str], cwd: Path) -> str:
    """The standard output of a program. Raises WheelError with its standard error where it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WheelError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel of the checkout."""
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)], folder)
    wheels = sorted(folder.glob("plan_llama-*.whl"))
    if len(wheels) != 1:
        raise WheelError(f"expected one wheel, found {[path.name for path in wheels]}")
    return wheels[0]


def inspect(wheel: Path) -> int:
    """Compare the wheel's files with the checkout's; the number of profiles in it."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.getinfo(name).file_size for name in archive.namelist()}
    profiles = sorted((ROOT / "profiles").rglob("*.toml"))
    sources = sorted((ROOT / "src").rglob("*.py"))
    wanted = {f"plan_llama/_profiles/{path.relative_to(ROOT / 'profiles')}": path for path in profiles}
    wanted |= {str(path.relative_to(ROOT / "src")): path for path in sources}
    wanted["plan_llama/py.typed"] = ROOT / "src/plan_llama/py.typed"
    wrong = sorted(name for name, path in wanted.items() if inside.get(name) != path.stat().st_size)
    if wrong or not profiles:
        raise WheelError(f"{wheel.name}: missing or different: {', '.join(wrong) or 'every profile'}")
    foreign = sorted(name for name in inside if name.startswith(("tests/", "scripts/")))
    if foreign:
        raise WheelError(f"{wheel.name} holds files that are not the package's: {', '.join(foreign)}")
    return len(profiles)


def plan_with(wheel: Path, folder: Path) -> dict[str, Any]:
    """What the installed program answers, far from the checkout."""
    venv.create(folder / "venv", with_pip=True)
    bin_folder = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run([str(bin_folder / "python"), "-m", "pip", "install", "-q", str(wheel)], folder)
    where = run([str(bin_folder / "python"), "-c", "import plan_llama; print(plan_llama.__file__)"], folder)
    if not Path(where.strip()).is_relative_to(folder.resolve()):
        raise WheelError(f"the fresh environment imports {where.strip()}")
    version = run([str(bin_folder / "plan-llama"), "--version"], folder).strip()
    if wheel.name.split("-")[1] not in version:
        raise WheelError(f"--version says {version!r}; the wheel is {wheel.name}")
    answer: dict[str, Any] = json.loads(run([str(bin_folder / "plan-llama"), *PLAN], folder))
    if (
        answer["schema"] != 1
        or answer["verdict"] != "fits"
        or "llama-server" not in answer["command"]["argv"][0]
    ):
        raise WheelError(f"the plan is not one: {json.dumps(answer)[:2000]}")
    return answer


def main() -> int:
    """Exit code 0, or 1 with what is wrong on standard error."""
    with tempfile.TemporaryDirectory(prefix="plan-llama-wheel.") as scratch:
        folder = Path(scratch)
        try:
            wheel = build(folder)
            profiles = inspect(wheel)
            answer = plan_with(wheel, folder)
        except WheelError as error:
            sys.stderr.write(f"check_wheel: {error}\n")
            return 1
        sys.stdout.write(f"{wheel.name}: {profiles} profiles, plans {answer['model']['name']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
