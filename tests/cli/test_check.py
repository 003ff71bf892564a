"""Commands that people have: refused arguments, memory, the corrected command."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from plan_llama.units import rate
from tests.cli.conftest import GIB, ONE_CARD, Cli
from tests.gguf_builder import write

# A guide's command for a 24 GB card: layers counted as if each were half a gigabyte, flags of three different years.
GUIDE = (
    *("llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-ngl", "47", "-c", "4096"),
    *("--mmap", "--mlock", "--flash-attn", "--defrag-thold", "0.1"),
)


def test_a_guides_command_is_taken_apart(cli: Cli) -> None:
    check = cli("check", *ONE_CARD, "--json", "--", *GUIDE)
    answer = check.json
    assert (check.code, answer["verdict"]) == (3, "invalid")
    errors = [item["text"] for item in answer["findings"] if item["severity"] == "error"]
    for refused in ("--mmap", "--mlock", "--flash-attn"):
        assert any(text.startswith(refused) for text in errors)
    # llama.cpp b11434 puts 131,494 MiB of weights on the card for -ngl 47 (a mix of 233.9 GB)
    card = answer["memory"]["devices"][0]
    assert 128 * GIB < card["weights_bytes"] < card["total_bytes"] < 135 * GIB
    assert any("would need 131" in text or "would need 130" in text for text in errors)
    # 45 layers and the output: the draft block and the output layer are counted by -ngl too
    assert answer["settings"]["layers_on_gpu"] == 45
    assert answer["settings"]["context_per_slot"] == 4096


def test_the_corrected_command_passes_its_own_check(cli: Cli) -> None:
    corrected = cli("check", *ONE_CARD, "--json", "--", *GUIDE).json["command"]["argv"]
    assert corrected[:5] == ["llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-c", "4096"]
    assert not {"--mmap", "--mlock", "--defrag-thold"} & set(corrected)
    again = cli("check", *ONE_CARD, "--json", "--", *corrected)
    assert (again.code, again.json["verdict"]) == (0, "fits")
    assert again.json["command"]["argv"] == corrected
    assert "Nothing in the command needs changing." in cli("check", *ONE_CARD, "--", *corrected).out


def test_the_text_names_everything_wrong_before_the_rest(cli: Cli) -> None:
    text = cli("check", *ONE_CARD, "--", *GUIDE).out
    assert (
        "INVALID  45 of 78 layers on the GPU, the other 33 on the CPU; 4K tokens of context shared by 4 slots"
        in text
    )
    assert text.index("--mmap: removed") < text.index("is not here; by its name")
    assert text.index("Memory as given:") < text.index("Corrected command:")
    assert "the given one 4 (llama-server's default" in " ".join(text.split())


@pytest.mark.parametrize("repo", ["unsloth/GLM-5.1-GGUF:UD-IQ2_M", "Unsloth/glm-5.1-gguf:ud-iq2_m"])
def test_a_repository_is_a_model_too(cli: Cli, repo: str) -> None:
    check = cli(
        "check", *ONE_CARD, "--json", "--", "./build/bin/llama-server", "-hf", repo, "-ngl", "40", "--jinja"
    )
    answer = check.json
    assert (check.code, answer["verdict"]) == (3, "does-not-fit")
    assert (answer["model"]["name"], answer["model"]["quant"]) == ("GLM-5.1", "UD-IQ2_M")
    argv = answer["command"]["argv"]
    assert argv[:3] == ["./build/bin/llama-server", "-hf", repo]
    assert "--jinja" in argv
    assert "-m" not in argv


def test_a_model_that_is_not_known(cli: Cli) -> None:
    check = cli("check", *ONE_CARD, "--json", "--", "llama-server", "-m", "nobody-knows.gguf", "--mlock")
    answer = check.json
    assert (check.code, answer["verdict"], answer["model"], answer["memory"]) == (3, "invalid", None, None)
    assert [item["id"] for item in answer["findings"][:2]] == ["flag-removed", "file-not-found"]
    named = cli("check", "--model", "glm-5.1", "--quant", "UD-IQ2_M", *ONE_CARD, "--json", "--")
    assert named.code == 2  # there is no command


def test_the_model_can_be_named_beside_the_command(cli: Cli) -> None:
    check = cli(
        *("check", "--model", "glm-5.1", "--quant", "UD-IQ2_M", *ONE_CARD, "--json", "--"),
        *("llama-server", "-m", "/srv/models/renamed.gguf", "-ngl", "99", "-cmoe", "-c", "16384", "-np", "1"),
    )
    assert (check.code, check.json["verdict"]) == (0, "fits")
    assert check.json["command"]["argv"][2] == "/srv/models/renamed.gguf"


def test_a_cache_that_spoils_the_output_is_said(cli: Cli) -> None:
    command = "llama-server -m GLM-5.1-UD-IQ2_M.gguf -ngl 99 -cmoe -c 32768 -ctk q8_0 -ctv q8_0 -fa on"
    ids = {item["id"] for item in cli("check", *ONE_CARD, "--json", "--", *command.split()).json["findings"]}
    assert "kv-quant-corrupts" in ids
    assert "draft-block-unused" in ids


def test_combinations_that_the_engine_refuses(cli: Cli) -> None:
    command = "llama-server -m GLM-5.1-UD-IQ2_M.gguf -ngl 99 -cmoe -c 8192 -ctk q8_0 -ctv q4_0 -fa off"
    check = cli("check", *ONE_CARD, "--json", "--", *command.split())
    ids = {item["id"] for item in check.json["findings"] if item["severity"] == "error"}
    assert (check.code, check.json["verdict"]) == (3, "invalid")
    assert {"kv-type-combo-unsupported", "kv-quant-needs-fa"} <= ids


@pytest.mark.parametrize(
    "argument",
    # each ends `llama-fit-params` b11434 with an error, or at an assertion
    [
        ("-dev", "CUDA7"),
        pytest.param(("-ot", "(=CPU"), marks=pytest.mark.slow),
        ("-ot", "exps=CUDA9"),
        pytest.param(("-c", "-5"), marks=pytest.mark.slow),
        ("-np", "300"),
        pytest.param(("-b", "0"), marks=pytest.mark.slow),
    ],
)
def test_what_stops_the_engine_is_invalid(cli: Cli, argument: tuple[str, str]) -> None:
    check = cli("check", *ONE_CARD, "--json", "--", "llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", *argument)
    assert (check.code, check.json["verdict"]) == (3, "invalid")
    assert "error" in {item["severity"] for item in check.json["findings"]}
    corrected = cli("check", *ONE_CARD, "--json", "--", *check.json["command"]["argv"])
    assert (corrected.code, corrected.json["verdict"]) == (0, "fits")


@pytest.mark.slow
def test_room_on_the_card_that_is_left_is_said(cli: Cli) -> None:
    machine = ("--model", "qwen3-30b-a3b-2507", "--quant", "Q4_K_M", "--gpu", "RTX 3090", "--ram", "64GiB")
    given = ("llama-server", "-m", "x.gguf", "-ngl", "99", "-c", "8192", "-fa", "on")
    wasteful = cli("check", *machine, "--json", "--", *given, "-ot", r"\.ffn_.*_exps\.=CPU").json
    said = next(item for item in wasteful["findings"] if item["id"] == "gpu-underused")
    card = wasteful["memory"]["pools"][1]
    assert (
        f"leaves {(card['available_bytes'] - card['used_bytes']) / GIB:.1f} GiB of gpu0 free" in said["text"]
    )
    assert wasteful["command"]["argv"][-1] == r"\.ffn_.*_exps\.=CPU"  # it fits: the command stays as it is
    planned = cli(*machine, "--ctx", "8192", "--json").json["speed"]["decode_tok_s"]["expected"]
    assert planned > 1.25 * wasteful["speed"]["decode_tok_s"]["expected"]
    assert f"about {rate(planned)} instead of" in said["text"]
    full = cli("check", *machine, "--json", "--", *given).json
    assert "gpu-underused" not in {item["id"] for item in full["findings"]}


def test_a_corrected_command_that_still_pages_says_so(cli: Cli) -> None:
    command = "llama-server -m GLM-5.1-UD-IQ2_M.gguf -ngl 99 -cmoe -c 8192"
    check = cli("check", "--gpu", "24GiB", "--ram", "64GiB", "--", *command.split())
    assert check.code == 3
    assert "PAGES-FROM-DISK" in check.out
    assert "Corrected command (it starts, and reads from disk):" in check.out


@pytest.mark.parametrize(
    "name", ["with space.gguf", 'it\'s "quoted".gguf', "two\nlines.gguf", "$(touch x);`y`.gguf"]
)
def test_names_come_back_quoted(cli: Cli, home: Path, name: str) -> None:
    write(home / name)
    command = ("llama-server", "-m", name, "-c", "512", "-np", "1", "--mlock")
    check = cli("check", "--no-gpu", "--ram", "8GiB", "--cpu-cores", "4", "--json", "--", *command)
    argv = check.json["command"]["argv"]
    assert argv[argv.index("-m") + 1] == name
    text = cli("check", "--no-gpu", "--ram", "64GiB", "--cpu-cores", "4", "--", *command).out
    block = text.split("Corrected command:\n")[1].split("\n\n")[0]
    assert name in shlex.split(block.replace("\\\n", " "))


OLD = ("llama-server", "-m", "Qwen3-8B-Q4_K_M.gguf", "-c", "8192", "-np", "1", "-ngl", "99", "--no-mmap")


def test_a_command_is_judged_by_the_build_that_is_named(cli: Cli) -> None:
    """--no-mmap is in b9093's --help (tests/data/engines/help-b9093.txt) and ends b11434."""
    then = cli("check", *ONE_CARD, "--engine-build", "b9093", "--json", "--", *OLD, "--fit", "off")
    assert (then.code, then.json["verdict"]) == (0, "fits")
    assert then.json["settings"]["load_mode"] == "none"
    now = cli("check", *ONE_CARD, "--json", "--", *OLD, "--fit", "off")
    assert (now.code, now.json["verdict"]) == (3, "invalid")
    newer = cli("check", *ONE_CARD, "--engine-build", "b9093", "--json", "--", *OLD, "--load-mode", "none")
    (error,) = [item for item in newer.json["findings"] if item["severity"] == "error"]
    assert error["id"] == "flag-unknown-old-build"
    assert "after b10001, with b10240 at the latest" in error["text"]
    assert error["fix"] == "write --no-mmap"
    assert "--load-mode" not in newer.json["command"]["argv"]
    assert newer.json["command"]["build"] == 9093


def test_a_model_that_the_build_does_not_know(cli: Cli) -> None:
    command = ("llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-c", "4096")
    check = cli("check", *ONE_CARD, "--engine-build", "b6324", "--json", "--", *command)
    assert (check.code, check.json["verdict"]) == (3, "invalid")
    said = {item["id"]: item for item in check.json["findings"]}
    assert said["architecture-needs-newer-build"]["fix"] == "llama.cpp b8643 or newer"


def test_users_of_a_command_wait_for_its_slots(cli: Cli) -> None:
    command = ("--", "llama-server", "-m", "Qwen3-8B-Q4_K_M.gguf", "-ngl", "99", "-c", "32768", "-np", "4")
    ended = cli("check", "--gpu", "24GiB", "--ram", "64GiB", "--users", "8", "--json", *command)
    load = ended.json["speed"]["load"]
    assert (load["users"], load["slots"]) == (8, 4)
    assert load["slot_wait_s"] > 0
    said = next(item for item in ended.json["findings"] if item["id"] == "users-wait-for-slots")
    assert said["fix"] == "--parallel 8 gives each a slot"


QWEN = ("llama-server", "-m", "Qwen3-32B-Q4_K_M.gguf", "-np", "1", "-ngl", "99", "--fit", "off")
DRAFT = ("-md", "Qwen3-0.6B-Q8_0.gguf", "--spec-type", "draft-simple")


def test_a_draft_model_is_counted(cli: Cli) -> None:
    """28 layers of 1,024 elements for K and as many for V: 4 bytes and 28,672 elements per token at f16."""
    alone = cli("check", "--json", *ONE_CARD, "--", *QWEN, "-c", "4096").json["memory"]
    with_draft = cli("check", "--json", *ONE_CARD, "--", *QWEN, "-c", "4096", *DRAFT).json
    found, draft = with_draft["memory"], with_draft["memory"]["draft"]
    card = draft["devices"][0]
    assert card["context_bytes"] == 4096 * 28 * 1024 * 2 * 2
    for key in ("weights_bytes", "context_bytes"):
        assert found["devices"][0][key] == alone["devices"][0][key] + card[key]
        assert found["host"][key] == alone["host"][key] + draft["host"][key]
    assert alone["draft"] is None
    ids = {item["id"] for item in with_draft["findings"]}
    assert "draft-model-counted" in ids
    assert not ids & {"not-counted", "draft-model-idle"}


def test_a_draft_model_that_is_not_known(cli: Cli) -> None:
    answer = cli("check", "--json", *ONE_CARD, "--", *QWEN, "-c", "4096", "-md", "nobody-knows.gguf").json
    assert [item["text"] for item in answer["findings"] if item["id"] == "not-counted"] == [
        "-md nobody-knows.gguf: the draft model's weights, cache and buffers are not counted"
    ]
    assert answer["memory"]["draft"] is None


def test_a_corrected_command_is_without_the_draft_model(cli: Cli) -> None:
    answer = cli("check", "--json", *ONE_CARD, "--", *QWEN, "-c", "32768", *DRAFT).json
    assert answer["verdict"] == "does-not-fit"
    assert "-md" not in answer["command"]["argv"]
    assert "draft-model-left-out" in [item["id"] for item in answer["findings"]]
