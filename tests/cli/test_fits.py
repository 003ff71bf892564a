"""Machines ranked for a model: the same answers as a plan for each of them, in order, as text and JSON."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from plan_llama import catalog
from plan_llama.cli import fits_command
from tests.cli.conftest import Cli

MACHINES = ("4090-3060-64", "desktop-64", "strix-halo-128")
CARDS = ("RTX 3060", "RTX 4090")
SMALL = ("fits", "--model", "qwen3-0.6b", "--quant", "Q8_0")


def schema(name: str) -> Any:
    """A schema of the package."""
    return json.loads(files("plan_llama").joinpath(f"schema/{name}.schema.json").read_text("utf-8"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three machines and two cards, for what does not depend on which there are."""
    real = catalog.files

    def some(kind: str) -> dict[str, Path]:
        found = real(kind)
        return {name: found[name] for name in MACHINES} if kind == "hardware" else found

    monkeypatch.setattr(catalog, "files", some)
    monkeypatch.setattr(fits_command, "cards", lambda: ("desktop-64", CARDS))


def test_every_machine_and_card_is_ranked(cli: Cli) -> None:
    ended = cli(*SMALL, "--gpu", "6GiB", "--ram", "16GiB", "--json")
    answer = ended.json
    assert ended.code == 0
    registry = Registry().with_resource("urn:plan-llama:plan:1", Resource.from_contents(schema("plan")))
    Draft202012Validator(schema("fits"), registry=registry).validate(answer)
    rows = answer["machines"]
    cards = tomllib.loads((catalog.root() / "fits.toml").read_text("utf-8"))["cards"]
    kinds = [row["kind"] for row in rows]
    assert kinds.count("asked") == 1
    assert kinds.count("card") == len(cards) >= 20
    assert {row["name"] for row in rows if row["kind"] == "machine"} == set(catalog.files("hardware"))
    assert all(
        len(row["gpus"]) == 1 and row["ram_bytes"] == 64 * 1024**3 for row in rows if row["kind"] == "card"
    )
    rank = ["fits", "tight", "pages-from-disk", "does-not-fit"]
    order = [(rank.index(row["verdict"]), row["speed"]["request_s"]) for row in rows]
    assert order == sorted(order)
    # a card reads half a gigabyte per token much faster than two channels of memory do
    names = [row["name"] for row in rows]
    assert names.index("NVIDIA GeForce RTX 4090") < names.index("Tesla P40") < names.index("desktop-64")


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_row_is_what_its_plan_says(cli: Cli) -> None:
    argv = ("--model", "gpt-oss-20b", "--ctx", "16K", "--prompt-tokens", "3000")
    rows = cli("fits", *argv, "--json").json["machines"]
    for name in ("4090-3060-64", "NVIDIA GeForce RTX 3060", "strix-halo-128"):
        row = next(row for row in rows if row["name"] == name)
        assert row["plan"][0] == "plan-llama"
        plan = cli(*row["plan"][1:], "--json").json
        assert plan["verdict"] == row["verdict"]
        assert plan["model"]["quant"] == row["quant"]
        assert plan["settings"]["context_per_slot"] == row["context_per_slot"] == 16384
        assert plan["speed"]["request_s"] == pytest.approx(row["speed"]["request_s"])


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_table(cli: Cli) -> None:
    text = cli(*SMALL, "--gpu", "6GiB", "--ram", "16GiB", "--users", "4").out
    assert "Fits, every margin kept:" in text
    assert "4 users at all times" in text
    assert "single cards stand in an assumed host" in text
    assert "the machine of the options" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_where_nothing_runs_it_the_code_is_three(cli: Cli) -> None:
    # 1.3 MB of cache per token: sixteen million tokens are 22 TB
    argv = ("--model", "command-r-35b", "--quant", "Q4_K_M", "--ctx", "16777216")
    ended = cli("fits", *argv, "--gpu", "24GiB", "--ram", "64GiB")
    assert ended.code == 3
    assert "Does not fit:" in ended.out
    assert "Fits" not in ended.out


def test_what_is_refused(cli: Cli) -> None:
    for argv, named in (
        ((), "--model is missing"),
        (("--model", "glm-4.5-air", "--quant", "Q9"), "Q9"),
        (("--model", "qwen3-8b", "--quant", "best"), "--quant best"),
    ):
        ended = cli("fits", *argv)
        assert ended.code == 2
        assert named in ended.err
        assert ended.err.count("\n") == 1
