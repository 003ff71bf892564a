"""Scripts are read as bash runs them: the words that a stand-in for llama-server is really started with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plan_llama.command_files import shell
from plan_llama.errors import InputError

# Prints what it was started with, one JSON list a call.
SERVER = f"""#!{sys.executable}
import json, os, sys
env = {{k: v for k, v in os.environ.items() if k.startswith("LLAMA_ARG_")}}
sys.stderr.write(json.dumps([sys.argv[1:], env]) + "\\n")
"""

SCRIPTS = {
    "variables": r"""
MODEL_DIR=/srv/models
MODEL="$MODEL_DIR/a model.gguf"
CTX=${CTX:-8192} NGL=99 # two in one line
FLAGS="--jinja -ngl ${NGL}"
llama-server -m "$MODEL" -c $CTX $FLAGS --alias "${MODEL_DIR}"/x
""",
    "continuations": r"""
llama-server \
  -m /m.gguf \
  -c 4096 `# a comment in the middle` \
  --temp 0.7 -b 20\
48
""",
    "quotes": r"""
llama-server -m 'it'\''s "here".gguf' --alias "a \"b\" \$HOME \\ \x" -c "4096"'' --prio $'2\t\x41\'' '' ""
""",
    "arrays": r"""
args=(
  -m "/a b.gguf"   # the model
  -c 4096
)
args+=(--jinja)
none=()
llama-server "${args[@]}" "${none[@]}" "$@" -np 2
""",
    "environment": r"""
export LLAMA_ARG_CTX_SIZE=4096
LLAMA_ARG_THREADS=3
LLAMA_ARG_BATCH=64 LLAMA_ARG_UBATCH="6""4" llama-server -m x.gguf
export LLAMA_ARG_THREADS LLAMA_ARG_HOST="127.0.0.1"
env LLAMA_ARG_PORT=81 llama-server -m y.gguf
""",
    "control": r"""
if [ 1 = 1 ]; then llama-server -m a.gguf -c 1; fi
true && llama-server -m b.gguf -c 2 || llama-server -m never.gguf
for i in 1; do
  llama-server -m c.gguf 2>&1 | cat >&2
done
start() { llama-server -m d.gguf; }
start
""",
    "here": r"""
cat > /dev/null <<'EOT'
llama-server -m not-this.gguf
EOT
cat <<-"END" > /dev/null
	llama-server -m nor-this.gguf
	END
llama-server -m this.gguf > /dev/null
""",
    "defaults": r"""
llama-server -m ${MODEL:-/m.gguf} -c "${CTX:-40 96}" --alias "${A:=one}" -b ${A:+5} -np ${B:+2} 1 $A ${C-"x y"}
""",
    "nested": r"""
bash -c 'llama-server -m "$0" -c 4096' x
bash -c "llama-server -m z.gguf --alias 'a b'"
""",
    "literal": r"llama-server -m a#b.gguf --alias a=b -c 4096;echo 'llama-server -m c.gguf' llama-server",
    "splitting": "A='  -c  4096 '\nB=\nllama-server -m x $A$B-np 2 $B '$A' $A\n",
}
# what only a running shell knows stands in the words as it is written
DIFFERS = {"nested": [["-m", "$0", "-c", "4096"], ["-m", "z.gguf", "--alias", "a b"]]}


def really(script: str, folder: Path) -> list[list[object]]:
    """What bash starts, in any order that its pipes have."""
    program = folder / "llama-server"
    program.write_text(SERVER, encoding="utf-8")
    program.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-c", script, "script"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(Path.home())},
    )
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]


def found(script: str) -> list[list[object]]:
    """What is read: the words behind the program, and the variables of the engine."""
    read: list[list[object]] = []
    for item in shell.commands(script):
        words = [word.text for word in item.words]
        env = dict(item.env)
        while words[0] != "llama-server":
            name, sign, value = words.pop(0).partition("=")
            if sign:
                env[name] = value
        env = {name: value for name, value in env.items() if name.startswith("LLAMA_ARG_")}
        read.append([words[1:], env])
    return read


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_is_read_as_bash_runs_it(tmp_path: Path, name: str) -> None:
    real = really(SCRIPTS[name], tmp_path)
    assert real
    read = found(SCRIPTS[name])
    if name in DIFFERS:
        assert [item[0] for item in read] == DIFFERS[name]
        return
    # a script is read from top to bottom with every branch taken; here one of them never runs
    assert [item for item in read if item[0] != ["-m", "never.gguf"]] == real


WORD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def single(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def double(text: str) -> str:
    return '"' + "".join("\\" + c if c in '\\"$`' else c for c in text) + '"'


def escaped(text: str) -> str:
    return "".join("'\n'" if c == "\n" else "\\" + c for c in text) or "''"


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORD, st.sampled_from([single, double, escaped, "variable"])), max_size=6))
def test_every_way_to_quote_is_read_as_bash_reads_it(tmp_path: Path, words: list[tuple[str, object]]) -> None:
    lines, line = [], "llama-server"
    for place, (text, how) in enumerate(words):
        if callable(how):
            line += " " + how(text)
        else:
            lines.append(f"v{place}={single(text)}")
            line += f' "$v{place}"'
    script = "\n".join([*lines, line])
    real = really(script, tmp_path)
    assert real == [[[text for text, _ in words], {}]]
    assert found(script) == real


def test_what_only_a_running_shell_knows_is_told_apart() -> None:
    (item,) = shell.commands(
        'llama-server -t $(nproc) -m "$1" -c `cat "a b"` --alias "${NAME}" -b $((1 + 2))'
    )
    assert [word.text for word in item.words if not word.known] == [
        *("$(nproc)", "$1", '`cat "a b"`', "${NAME}", "$((1 + 2))"),
    ]


def test_what_was_taken_for_granted_is_said() -> None:
    (item,) = shell.commands("A=1\nif x; then A=2; fi\nllama-server -c ${CTX:-4096} -np $A")
    assert [word.text for word in item.words] == ["llama-server", "-c", "4096", "-np", "2"]
    assert item.notes == (
        "taken as not set from outside, so that their defaults count: CTX (4096)",
        "set more than once, the last value is taken: A",
    )


@pytest.mark.parametrize(
    ("line", "words", "env"),
    [
        ("sudo -u llm numactl -N0 ./llama-server -c 1", "sudo -u llm numactl -N0 ./llama-server -c 1", {}),
        ("exec /opt/bin/llama serve -c 1", "exec /opt/bin/llama serve -c 1", {}),
        (
            "docker run --rm --gpus all -e LLAMA_ARG_NP=2 -p 8080:8080 ggml-org/llama.cpp:server-cuda-b9000 -m x",
            "llama-server -m x",
            {"LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_ARG_NP": "2"},  # noqa: S104 - what the image sets
        ),
        ("podman run --gpus=all local/llama.cpp:full --server -m x", "llama-server -m x", {}),
        ("docker run -it --entrypoint /app/llama-cli some/image -m x", "/app/llama-cli -m x", {}),
        ('"${LLAMA_SERVER_BIN}" -m x', "llama-server -m x", {}),
    ],
)
def test_programs_behind_others(line: str, words: str, env: dict[str, str]) -> None:
    (item,) = shell.commands(line)
    assert (" ".join(word.text for word in item.words), dict(item.env)) == (words, env)


@pytest.mark.parametrize(
    "line",
    [
        "echo llama-server -m x",
        "pkill -f llama-server",
        "cmake --build build --target llama-server",
        "docker run redis:7 llama",
        "docker pull ghcr.io/ggml-org/llama.cpp:server",
        "which llama-server && ls -l $(which llama-server)",
    ],
)
def test_lines_that_start_nothing(line: str) -> None:
    assert shell.commands(line) == []


@pytest.mark.parametrize("text", ["llama-server -m 'x", 'llama-server "', "llama-server $(", "x ${a"])
def test_a_quote_that_is_never_closed(text: str) -> None:
    with pytest.raises(InputError, match="line 1: "):
        shell.commands(text)


def test_depth_is_bounded() -> None:
    deep = "x"
    for _ in range(40):
        deep = "${a:-" + deep + "}"
    with pytest.raises(InputError, match="deep"):
        shell.commands(f"llama-server {deep}")
