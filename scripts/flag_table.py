"""Read every argument that one build of llama.cpp's programs accepts from its source.

scripts/flag_history.py puts the builds together and writes the tables. Two parsers are read: `common/arg.cpp`
(llama-server, llama-cli, llama-fit-params and the other examples) and llama-bench's own in `llama-bench.cpp`. What
decides whether a value is accepted is taken from the handlers: the words they compare with, the conversion they call,
the bounds that make them throw.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tomli_w

PROGRAMS = {
    "LLAMA_EXAMPLE_SERVER": "llama-server",
    "LLAMA_EXAMPLE_CLI": "llama-cli",
    "LLAMA_EXAMPLE_FIT_PARAMS": "llama-fit-params",
}
BEFORE_CLI = "LLAMA_EXAMPLE_MAIN"  # what llama-cli was before the chat client took its name
TRUTHY = ("on", "enabled", "true", "1")
FALSEY = ("off", "disabled", "false", "0")
AUTO = ("auto", "-1")
NUMBERS = {"GGML_SCHED_PRIO_LOW": -1, "GGML_SCHED_PRIO_REALTIME": 3}
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
SKIP = re.compile(r'R"\((?:.|\n)*?\)"|"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)\'|//[^\n]*|/\*(?:.|\n)*?\*/')
OPENING, CLOSING = "([{", ")]}"


def significant(text: str, start: int) -> Iterator[tuple[int, str]]:
    """The characters that are not inside a string, a character literal or a comment, with their places."""
    place = start
    while place < len(text):
        if literal := SKIP.match(text, place):
            place = literal.end()
            continue
        yield place, text[place]
        place += 1


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place, character in significant(text, start):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0:
            return place
    raise SystemExit(f"unbalanced bracket at offset {start}")


def parts(text: str) -> list[str]:
    """The comma-separated arguments of a call, comments removed from their front."""
    found, depth, begin = [], 0, 0
    for place, character in significant(text, 0):
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0:
            found.append(text[begin:place])
            begin = place + 1
    found.append(text[begin:])
    return [re.sub(r"^(\s*//[^\n]*\n)+", "", part).strip() for part in found]


def conditions(source: str) -> list[tuple[int, int, str, bool]]:
    """Ranges of `if (ex == LLAMA_EXAMPLE_X) {…} else {…}` with arguments: begin, end, example, wanted."""
    found = []
    for match in re.finditer(r"\n    if \(ex == (LLAMA_EXAMPLE_\w+)\) \{", source):
        end = closing(source, match.end() - 1)
        found.append((match.start(), end, match[1], True))
        if otherwise := re.compile(r"\s*else \{").match(source, end + 1):
            found.append((end, closing(source, otherwise.end() - 1), match[1], False))
    return found


def bounds(body: str) -> dict[str, Any]:
    """`min`, `max` and `refused` from the conditions under which a handler throws."""
    found: dict[str, Any] = {}
    for condition in re.findall(r"if \(([^{}]*)\)\s*\{\s*throw", body):
        for clause in condition.split("||"):
            match = re.fullmatch(r"\s*\w+ (<|>|==) (-?\w+)\s*", clause)
            if not match:
                continue
            number = NUMBERS.get(match[2])
            if number is None and re.fullmatch(r"-?\d+", match[2]):
                number = int(match[2])
            if number is None:
                continue
            if match[1] == "==":
                found["refused"] = [*found.get("refused", []), number]
            else:
                found["min" if match[1] == "<" else "max"] = number
    return found


def kind_of(handler: str, cache_types: list[str]) -> dict[str, Any]:
    """What a handler makes of its value."""
    signature, _, body = handler.partition("{")
    if re.search(r",\s*int \w+\)|,\s*int /\*value\*/\)", signature):
        return {"kind": "int", **bounds(body)}
    if "kv_cache_type_from_str" in body:
        return {"kind": "choice", "choices": cache_types}
    words = re.findall(r'value == "([^"]*)"', body)
    for call, accepted in (("is_truthy(", TRUTHY), ("is_falsey(", FALSEY), ("is_autoy(", AUTO)):
        if call in body:
            words += accepted
    listed = "split_arg" in body
    for call, kind in (("stof", "float"), ("stoul?l", "uint"), ("stoi", "int")):
        if re.search(rf"std::{call}\((?:value\)|split_arg)", body):
            return {
                "kind": kind + ("s" if listed else ""),
                **({"choices": words} if words else {}),
                **bounds(body),
            }
    if words and re.search(r"else \{\s*throw|else\s*\{ throw", body):
        return {"kind": "choice", "choices": words}
    if "parse_device_list" in body:
        return {"kind": "devices"}
    return {"kind": "string"}


def programs_of(header: str) -> dict[str, str]:
    """The programs of a tree by their name in its common/common.h."""
    known = set(re.findall(r"LLAMA_EXAMPLE_\w+", header))
    found = {example: program for example, program in PROGRAMS.items() if example in known}
    if "llama-cli" not in found.values() and BEFORE_CLI in known:
        found[BEFORE_CLI] = "llama-cli"
    return found


def common_arguments(source: str, header: str) -> Iterator[dict[str, Any]]:
    """The arguments of common/arg.cpp, one dict each; `header` is common/common.h."""
    known = programs_of(header)
    cache = re.search(r"kv_cache_types = \{([^}]*)\}", source)
    cache_types = [name.lower() for name in re.findall(r"GGML_TYPE_(\w+)", cache[1])] if cache else []
    named = {
        match[1]: re.findall(r"LLAMA_EXAMPLE_\w+", match[2])
        for match in re.finditer(r"(\w+) = \{((?:\s*LLAMA_EXAMPLE_\w+,?)+)\s*\};", source)
    }
    scoped = conditions(source)
    for match in re.finditer(r"add_opt\((?:common|llama)_arg\(", source):
        call_end = closing(source, match.end() - 1)
        modifiers = source[call_end : closing(source, match.start() + len("add_opt"))]
        arguments = parts(source[match.end() : call_end])
        names, handler = STRING.findall(arguments[0]), arguments[-1]
        examples = {"LLAMA_EXAMPLE_COMMON"}
        if given := re.search(r"\.set_examples\(([^)]*)\)", modifiers):
            examples = set(named.get(given[1].strip(), re.findall(r"LLAMA_EXAMPLE_\w+", given[1])))
        excluded = re.search(r"\.set_excludes\(([^)]*)\)", modifiers)
        without = set(re.findall(r"LLAMA_EXAMPLE_\w+", excluded[1])) if excluded else set()
        for begin, end, example, wanted in scoped:
            if begin < match.start() < end:
                without |= set(known) - {example} if wanted else {example}
        programs = [
            program
            for example, program in known.items()
            if ({"LLAMA_EXAMPLE_COMMON", example} & examples) and example not in without
        ]
        if not programs:
            continue
        entry: dict[str, Any] = {"names": names}
        if arguments[1].startswith("{"):
            entry |= {"negative": STRING.findall(arguments[1]), "kind": "switch"}
        elif len(arguments) == 3:
            entry["kind"] = "flag"
        else:
            entry["values"] = [
                hint[0] if (hint := STRING.findall(text)) and text.startswith('"') else "VALUE"
                for text in arguments[1:-2]
            ]
            entry |= {"kind": "strings"} if len(arguments) == 5 else kind_of(handler, cache_types)
        if env := re.search(r'\.set_env\("(\w+)"\)', modifiers):
            entry["env"] = env[1]
        if removed := re.search(r'arg_removed\("([^"]*)"\)', handler):
            entry["removed"] = removed[1]
        elif notice := re.search(r'LOG_WRN\("DEPRECATED: ([^"]*?)(?:\\n)?"\)', handler):
            entry["ignored" if "GGML_UNUSED(value)" in handler else "deprecated"] = notice[1]
        yield {**entry, "programs": programs}


def bench_arguments(source: str) -> Iterator[dict[str, Any]]:
    """The arguments of llama-bench's own parser."""
    usage = dict(re.findall(r'printf\("  (-[^<\n]*?) (<.*?)(?=  |\\n| \()', source))
    hints = {
        name.strip(): hint for names, hint in usage.items() for name in re.split(r"[ ,]+", names) if name
    }
    loop = source[source.index("static cmd_params parse_cmd_params") :]
    branches = list(re.finditer(r'if \(((?:llama_supports_rpc\(\) && \()?arg == "[^{]*)\) \{', loop))
    cache = re.findall(r'if \(s == "(\w+)"\) \{\s*return GGML_TYPE', source)
    for match in branches:
        body = loop[match.end() : closing(loop, match.end() - 1)]
        names = STRING.findall(match[1])
        if "++i" not in body:
            yield {"names": names, "kind": "flag", "programs": ["llama-bench"]}
            continue
        words = re.findall(r'(?:\bm|value) == "([^"]+)"', body)
        if "is_truthy" in body:
            words += [*TRUTHY, *FALSEY, *AUTO]
        if "ggml_type_from_name" in body:
            words = cache
        if words:
            kind: dict[str, Any] = {"kind": "choices", "choices": words}
        elif "parse_int_range" in body:
            kind = {"kind": "ranges"} if "allow_negative" in body else {"kind": "ranges", "min": 0}
        elif "string_split<bool>" in body:
            kind = {"kind": "bools"}
        elif "std::stoi(argv" in body:
            kind = {"kind": "int"}
        elif "std::stof(split_arg" in body:
            kind = {"kind": "floats"}
        elif "std::stou" in body:
            kind = {"kind": "uints"}
        else:
            kind = {"kind": "string"}
        yield {
            "names": names,
            "values": [hints.get(names[-1], hints.get(names[0], "VALUE"))],
            **kind,
            "programs": ["llama-bench"],
        }


def compact(table: dict[str, Any]) -> str:
    """TOML with one argument per line-group and arrays on one line."""
    lines = [
        tomli_w.dumps({key: value}).strip() for key, value in table.items() if not isinstance(value, list)
    ]
    lines.append("sources = " + inline(table["sources"]))
    for entry in table["argument"]:
        lines += ["", "[[argument]]", *(f"{key} = {inline(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def inline(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, list):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
