#!/usr/bin/env python3
"""Write what ik_llama.cpp accepts and reads: its arguments and its tensor types, from a clone of its repository.

usage: ik_llama.py --clone DIR [--commit HEAD]

`git clone https://github.com/ikawrakow/ik_llama.cpp` makes the clone; files are taken from the commit, not from the
work tree. A build is named as its own `--version` does, by the number of commits. Sizes of blocks are those that a C
compiler (`cc`) finds in ggml's own structures. Written are bNNNN.toml and types.toml under
profiles/engines/ik_llama.cpp.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flag_history import rows
from flag_table import STRING, bench_arguments, bounds, closing, inline, parts

PROFILES = Path(__file__).resolve().parents[1] / "profiles" / "engines" / "ik_llama.cpp"
COMMON, BENCH = "common/common.cpp", "examples/llama-bench/llama-bench.cpp"
HEADERS = ("ggml/src/ggml-common.h", "ggml/include/ggml.h")
PROGRAMS = ["llama-server", "llama-cli"]
GIT, CC = shutil.which("git") or "git", shutil.which("cc") or "cc"
TRUTHY = ("on", "enabled", "true", "1")
FALSEY = ("off", "disabled", "false", "0")
AUTO = ("auto", "-1")
# Other programs' arguments in the parser that all of them share.
NOT_SERVING = ("sweep", "hellaswag", "winogrande", "multiple-choice", "kl-divergence", "ppl", "perplexity")


class Clone:
    """A git repository, read at one commit."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder = folder
        self.commit = self.git("rev-parse", commit).strip()
        self.build = int(self.git("rev-list", "--count", self.commit))

    def git(self, *words: str) -> str:
        """The output of a git command."""
        done = subprocess.run([GIT, "-C", str(self.folder), *words], capture_output=True, check=True)
        return done.stdout.decode("utf-8", "replace")

    def text(self, path: str) -> str:
        """A file of the commit."""
        return self.git("show", f"{self.commit}:{path}")


def cache_types(source: str) -> list[str]:
    """The words that -ctk takes."""
    start = source.index("kv_cache_type_from_str(const std::string")
    return re.findall(r'if \(s == "(\w+)"\)', source[start : start + 4000])


def environment(source: str) -> dict[str, str]:
    """The parser's variables by the field that they set."""
    return {
        field: name for name, field in re.findall(r'get_env\("(LLAMA_ARG_\w+)",\s*params\.([\w.]+)\)', source)
    }


def hints(source: str) -> dict[str, list[str]]:
    """How the help shows the values of an argument, by each of its names."""
    found: dict[str, list[str]] = {}
    for text in re.findall(r'options\.push_back\(\{\s*"[^"]*",\s*"(-[^"]+)"', source):
        names = re.findall(r"(?<!\S)(--?[A-Za-z][\w-]*)", text)
        words = re.split(r"\s+", text.strip())
        values = [word for word in words if not word.startswith("-")]
        for name in names:
            found[name] = values
    return found


def kind_of(body: str, taken: int, kv_types: list[str]) -> dict[str, Any]:
    """What a branch of the parser makes of its values."""
    if taken == 0:
        return {"kind": "flag"}
    if taken > 1:
        return {"kind": "strings"}
    if re.search(r"cache_type_[kv] = argv\[\+?\+?i\]", body):
        return {"kind": "choice", "choices": kv_types}
    if "parse_device_list" in body:
        return {"kind": "devices"}
    words = [word for word in re.findall(r'(?:value|arg_next|next_arg|val) == "([^"]*)"', body) if word]
    for call, accepted in (("is_truthy(", TRUTHY), ("is_falsey(", FALSEY), ("is_autoy(", AUTO)):
        words += accepted if call in body else ()
    if words and re.search(r"else \{\s*(invalid_param = true|throw)", body):
        return {"kind": "choice", "choices": words}
    if "tensor_split[i]" in body:
        return {"kind": "floats"}
    for call, kind in (("stof", "float"), ("stoul", "uint"), ("stoi", "int")):
        if re.search(rf"std::{call}\(argv\[i\]\)", body):
            return {"kind": kind, **bounds(body.replace("invalid_param = true", "throw"))}
    return {"kind": "string"}


def common_arguments(source: str) -> Iterator[dict[str, Any]]:
    """The arguments of gpt_params_find_arg, one dict each."""
    shown, kv_types, variables = hints(source), cache_types(source), environment(source)
    start = source.index("bool gpt_params_find_arg(")
    text = source[start : closing(source, source.index("{", start))]
    for match in re.finditer(r'\n    (?:else )?if \(((?:[\w.]+ && )?arg == "[^)]*)\) *\{', text):
        names = STRING.findall(match[1])
        if any(word in name for name in names for word in NOT_SERVING):
            continue
        body = text[match.end() : closing(text, match.end() - 1)]
        taken = body.count("CHECK_ARG") + body.count("++i >= argc") + body.count("argv[++i]")
        entry: dict[str, Any] = {"names": names}
        if taken:
            listed = next((shown[name] for name in reversed(names) if shown.get(name)), [])
            entry["values"] = (listed + ["VALUE"] * taken)[:taken]
        entry |= kind_of(body, taken, kv_types)
        fields = re.findall(r"params\.([\w.]+) = ", body)
        positive = not any(name.startswith(("--no-", "-no-")) for name in names)
        if positive and (env := next((variables[name] for name in fields if name in variables), None)):
            entry["env"] = env
        if "common_speculative_legacy_option_error(" in body:
            call = body[body.index("legacy_option_error(") + len("legacy_option_error") :]
            said = parts(call[1 : closing(call, 0)])[1]
            entry["removed"] = "use " + "".join(STRING.findall(said)).strip()
        elif "no longer supported" in body or "has been deprecated" in body:
            entry["ignored"] = "no longer supported"
        yield {**entry, "programs": PROGRAMS}


def types(clone: Clone) -> list[dict[str, Any]]:
    """The tensor types with the elements and bytes of a block, and the bytes that a row has beside its blocks."""
    source = clone.text("ggml/src/ggml.c")
    ids = dict(re.findall(r"(GGML_TYPE_\w+)\s*=\s*(\d+)", clone.text(HEADERS[1])))
    start = source.index("static const ggml_type_traits_t type_traits[GGML_TYPE_COUNT]")
    begin = source.index("{", start)
    table = source[begin + 1 : closing(source, begin)]
    lines = []
    for match in re.finditer(r"\[(GGML_TYPE_\w+)\]\s*=\s*(\{)", table):
        body = re.sub(r"//[^\n]*", "", table[match.end() : closing(table, match.start(2))])
        found = dict(re.findall(r"\.(type_name|blck_size|type_size|row_meta_size)\s*=\s*([^,]+),", body))
        if match[1] in ids and "type_name" in found:
            numbers = ", ".join(
                f"(int)({found.get(k, 0)})" for k in ("blck_size", "type_size", "row_meta_size")
            )
            lines.append(f'printf("%s %d %d %d %d\\n", {found["type_name"]}, {ids[match[1]]}, {numbers});')
    with tempfile.TemporaryDirectory() as folder:
        for path in HEADERS:
            (Path(folder) / Path(path).name).write_text(clone.text(path), encoding="utf-8")
        program = Path(folder) / "sizes.c"
        program.write_text(
            '#define GGML_COMMON_DECL_C\n#include "ggml-common.h"\n#include <stdio.h>\n'
            "typedef struct { unsigned short bits; } ggml_bf16_t;\ntypedef unsigned short ggml_fp16_t;\n"
            "int main(void) {\n" + "\n".join(lines) + "\n}\n",
            encoding="utf-8",
        )
        subprocess.run([CC, "-w", "-o", f"{folder}/sizes", str(program)], check=True, cwd=folder)
        said = subprocess.run([f"{folder}/sizes"], capture_output=True, text=True, check=True).stdout
    made = []
    for line in said.splitlines():
        name, *numbers = line.split()
        number, elements, size, row = map(int, numbers)
        made.append({"id": number, "name": name, "elements": elements, "bytes": size, "row_bytes": row})
    return sorted(made, key=lambda item: item["id"])


def file_types(clone: Clone) -> dict[str, str]:
    """general.file_type by its number, in publishers' spelling."""
    found = re.findall(r"LLAMA_FTYPE_MOSTLY_(\w+)\s*=\s*(\d+)", clone.text("include/llama.h"))
    return {number: name for name, number in found}


def head(what: str, clone: Clone, **values: Any) -> str:
    """The beginning of a written file."""
    text = f"# {what}\n# Written by scripts/ik_llama.py. Do not edit.\nschema = 1\n"
    values = {"engine": "ik_llama.cpp", "build": clone.build, "commit": clone.commit, **values}
    return text + "".join(f"{key} = {inline(value)}\n" for key, value in values.items())


def main() -> None:
    """Read the clone and write the files."""
    parser = argparse.ArgumentParser(description="Write the tables of ik_llama.cpp.")
    parser.add_argument("--clone", type=Path, required=True)
    parser.add_argument("--commit", default="HEAD")
    given = parser.parse_args()
    clone = Clone(given.clone, given.commit)
    found = [*common_arguments(clone.text(COMMON)), *bench_arguments(clone.text(BENCH))]
    if len(found) < 200:
        sys.exit(f"only {len(found)} arguments found: the parser has another form")
    text = head(f"The arguments of ik_llama.cpp b{clone.build}.", clone, sources=[COMMON, BENCH])
    (PROFILES / f"b{clone.build}.toml").write_text(text + rows("argument", found), encoding="utf-8")
    text = head(
        "Tensor types: elements and bytes of a block, and the bytes that each row has beside its blocks.",
        clone,
        sources=["ggml/src/ggml.c", *HEADERS, "include/llama.h"],
    )
    numbers = file_types(clone)
    text += "\n[file_types]\n" + "".join(f'{number} = "{name}"\n' for number, name in numbers.items())
    (PROFILES / "types.toml").write_text(text + rows("type", types(clone)), encoding="utf-8")


if __name__ == "__main__":
    main()
