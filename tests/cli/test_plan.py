"""The main job: a plan for machines that differ, as text and as JSON."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plan_llama.units import rate
from tests.cli.conftest import GIB, GLM, ONE_CARD, Cli


def test_one_card_gets_every_layer_and_the_cpu_most_experts(cli: Cli) -> None:
    plan = cli(*GLM, *ONE_CARD, "--json")
    answer = plan.json
    assert plan.code == 0
    assert answer["verdict"] in ("fits", "tight")
    assert answer["settings"]["layers_on_gpu"] == answer["model"]["layers"] == 78
    assert 60 <= answer["settings"]["cpu_moe_layers"] <= 75  # 75 layers have experts, of about 2.9 GiB each
    card = answer["memory"]["devices"][0]
    parts = ("weights_bytes", "context_bytes", "compute_bytes", "overhead_bytes")
    assert card["total_bytes"] == sum(card[part] for part in parts) <= 23 * GIB
    assert answer["memory"]["peak"]["devices"][0] <= 24 * GIB
    # 109,824 bytes per token: (512 + 64 + 128) elements of f16 in each of 78 layers
    assert card["context_bytes"] == 109824 * answer["settings"]["context_pool"]
    assert answer["memory"]["host"]["total_bytes"] <= answer["memory"]["host"]["available_bytes"]
    argv = answer["command"]["argv"]
    assert argv[argv.index("-ngl") + 1] == "all"
    assert {"-ncmoe", "-cmoe", "-ot"} & set(argv)


def test_the_text_says_the_same(cli: Cli) -> None:
    text = cli(*GLM, *ONE_CARD).flat
    assert re.search(
        r"FITS all 78 layers on the GPU, experts of \d\d of 75 layers on the CPU; 32K tokens", text
    )
    assert "a described machine, not this one" in text
    for heading in (
        "Memory:",
        "Speed:",
        "Context:",
        "Command (llama.cpp, b11434):",
        "Download first:",
        "Good to know:",
    ):
        assert heading in text
    assert "hf download unsloth/GLM-5.1-GGUF --include 'UD-IQ2_M/*'" in text
    assert "236.0 GB from https://huggingface.co/unsloth/GLM-5.1-GGUF" in text


def test_assumptions_are_said_once(cli: Cli) -> None:
    text = cli(*GLM, "--gpu", "24GiB", "--ram", "256GB").flat
    assert "memory bandwidth of GPU with 24.0 GiB unknown" in text
    assert text.count("channels of DDR5-5600 are assumed") == 1
    assert "RAM bandwidth assumed" not in text  # the note above says it, and what to do
    assert "the processor is taken from this machine" in text
    assert "256GB: MB and GB of memory are read as MiB and GiB" in text
    assert "no llama-server" not in text  # of a machine that is not this one nothing is known


@pytest.mark.slow
def test_a_processor_that_was_given_is_not_this_machines(cli: Cli) -> None:
    ids = {item["id"] for item in cli(*GLM, *ONE_CARD, "--json").json["findings"]}
    assert "cpu-of-this-machine" not in ids


@pytest.mark.parametrize(
    ("machine", "code", "verdict", "cards"),
    [
        (("--no-gpu", "--ram", "256GiB"), 0, "fits", 0),
        (("--gpu", "24GiB", "--ram", "128GiB"), 3, "pages-from-disk", 1),
        (("--gpu", "24GiB", "--ram", "64GiB"), 3, "pages-from-disk", 1),
        pytest.param(("--gpu", "24GiB*4", "--ram", "256GiB"), 0, "fits", 4, marks=pytest.mark.slow),
        pytest.param(("--gpu", "80GiB*8", "--ram", "1TiB"), 0, "fits", 8, marks=pytest.mark.slow),
        pytest.param(("--gpu", "1GiB", "--ram", "256GiB"), 0, "fits", 1, marks=pytest.mark.slow),
    ],
)
def test_machines(cli: Cli, machine: tuple[str, ...], code: int, verdict: str, cards: int) -> None:
    plan = cli(*GLM, *machine, "--cpu-cores", "16", "--json")
    answer = plan.json
    assert (plan.code, answer["verdict"]) == (code, verdict)
    assert len(answer["memory"]["devices"]) == cards
    for device, free in zip(answer["memory"]["devices"], answer["machine"]["gpus"], strict=True):
        assert device["total_bytes"] <= free["free_bytes"]
    weights = answer["memory"]["host"]["weights_bytes"]
    weights += sum(device["weights_bytes"] for device in answer["memory"]["devices"])
    # 236 GB less the draft block of about 3 GB where it is not used; embeddings are not kept twice
    assert 230e9 < weights < (237.1e9 if answer["settings"]["draft_layers"] else 234.5e9)
    errors = [item for item in answer["findings"] if item["severity"] == "error"]
    assert bool(errors) == (code == 3)
    if code == 3:
        assert errors[0]["id"] == "mmap-paging-thrash"
        assert "of memory is available" in errors[0]["text"]
        assert any("more memory" in item["what"] for item in answer["alternatives"])


@pytest.mark.slow
def test_more_cards_take_more_experts_and_make_it_faster(cli: Cli) -> None:
    on_cpu, speeds = [], []
    for gpu in ("24GiB", "24GiB*4", "80GiB*8"):
        answer = cli(*GLM, "--gpu", gpu, "--ram", "512GiB", "--cpu-cores", "16", "--json").json
        on_cpu.append(answer["settings"]["cpu_moe_layers"])
        speeds.append(answer["speed"]["decode_tok_s"]["expected"])
    assert on_cpu[0] > on_cpu[1] > on_cpu[2] == 0
    assert speeds == sorted(speeds)


@pytest.mark.slow
def test_what_would_make_it_fit_does(cli: Cli) -> None:
    plan = cli(*GLM, "--gpu", "24GiB", "--ram", "128GiB", "--cpu-cores", "16")
    found = re.search(r"a machine of about ([0-9.]+) GiB keeps it resident", plan.flat)
    assert found
    assert "What would make it fit:" in plan.out
    assert "--pin ubatch" not in plan.out  # no micro-batch makes 203 GiB fit into 125
    roomy = cli(
        *GLM, "--gpu", "24GiB", "--ram", f"{float(found[1]) + 8:.0f}GiB", "--cpu-cores", "16", "--json"
    )
    assert roomy.json["verdict"] in ("fits", "tight")


@pytest.mark.slow
def test_paging_can_be_accepted(cli: Cli) -> None:
    plan = cli(*GLM, "--gpu", "24GiB", "--ram", "128GiB", "--allow-paging", "--json")
    assert (plan.code, plan.json["verdict"]) == (0, "pages-from-disk")
    assert "mmap-paging-thrash" in {
        item["id"] for item in plan.json["findings"] if item["severity"] == "warning"
    }


@pytest.mark.slow
def test_a_card_too_small_is_left_alone_and_that_is_said(cli: Cli) -> None:
    plan = cli(*GLM, "--gpu", "1GiB", "--ram", "256GiB", "--cpu-cores", "16")
    assert "FITS all on the CPU" in plan.flat
    assert "nothing is placed here" in plan.out
    assert "no GPU has room for a share of this model" in plan.flat


@pytest.mark.slow
def test_layers_are_counted_once_in_the_headline(cli: Cli) -> None:
    asked = (*GLM, "--gpu", "8GiB", "--ram", "256GiB", "--ctx", "49152")
    found = re.search(
        r"(\d+) of 78 layers on the GPU \(their experts and all weights of (\d+) on the CPU\), "
        r"the other (\d+) on the CPU",
        cli(*asked).flat,
    )
    assert found
    assert int(found[1]) + int(found[3]) == 78
    assert int(found[2]) == cli(*asked, "--json").json["settings"]["cpu_weight_layers"]


@pytest.mark.slow
def test_one_pool_of_memory(cli: Cli) -> None:
    plan = cli(*GLM, "--hardware", "mac-studio-m3-ultra-512", "--json")
    answer = plan.json
    assert plan.code == 0
    assert answer["machine"]["unified"] is True
    [pool] = answer["memory"]["pools"]
    used = answer["memory"]["host"]["total_bytes"] + sum(
        d["total_bytes"] for d in answer["memory"]["devices"]
    )
    assert pool["used_bytes"] == used
    text = cli(*GLM, "--hardware", "mac-studio-m3-ultra-512").flat
    assert "shared by CPU and GPU" in text
    assert "PCIe" not in text


@pytest.mark.slow
def test_without_a_quant_the_largest_that_fits_is_chosen(cli: Cli) -> None:
    plan = cli("--model", "glm-5.1", "--gpu", "24GiB", "--ram", "512GiB", "--cpu-cores", "32", "--json")
    answer = plan.json
    chosen = next(item for item in answer["findings"] if item["id"] == "quant-chosen")
    assert answer["model"]["quant"] in chosen["text"]
    assert answer["verdict"] == "fits"
    assert answer["model"]["file_bytes"] > 300e9  # 236 GB would leave more than half of it unused


@pytest.mark.slow
def test_a_smaller_quant_that_stays_on_the_gpu_is_named(cli: Cli) -> None:
    argv = ("--model", "mistral-small-24b", "--gpu", "24GiB", "--ram", "64GiB")
    answer = cli(*argv, "--json").json
    assert answer["settings"]["layers_on_gpu"] < answer["model"]["layers"]
    chosen = next(item for item in answer["findings"] if item["id"] == "quant-chosen")
    quant = chosen["fix"].removeprefix("--quant ").removesuffix(", or another")
    other = cli(*argv, "--quant", quant, "--json").json
    assert (other["verdict"], other["settings"]["layers_on_gpu"]) == ("fits", other["model"]["layers"])
    fast, slow = (rate(item["speed"]["decode_tok_s"]["expected"]) for item in (other, answer))
    assert f"{quant} ({other['model']['file_bytes'] / 1e9:.1f} GB) would be all on the GPU" in chosen["text"]
    assert f"decode {fast} instead of {slow} tok/s" in chosen["text"]
    # with room for everything there is nothing to add
    roomy = cli("--model", "mistral-7b", "--gpu", "24GiB", "--ram", "64GiB", "--json").json["findings"]
    assert next(item for item in roomy if item["id"] == "quant-chosen")["fix"] == "--quant names another"


@pytest.mark.slow
def test_slots_and_context_are_told_apart(cli: Cli) -> None:
    plan = cli(*GLM, *ONE_CARD, "--parallel", "2", "--ctx", "8K", "--json")
    settings = plan.json["settings"]
    assert (settings["context_per_slot"], settings["context_pool"], settings["parallel"]) == (8192, 16384, 2)
    assert (
        "8K tokens of context for each of 2 slots"
        in cli(*GLM, *ONE_CARD, "--parallel", "2", "--ctx", "8K").flat
    )


@pytest.mark.slow
def test_what_is_read_row_by_row_is_no_part_of_the_sum(cli: Cli) -> None:
    argv = ("--model", "gemma-4-e4b", "--quant", "BF16", "--hardware", "laptop-4060-32")
    host = cli(*argv, "--json").json["memory"]["host"]
    assert host["lazy_bytes"] > 5 * GIB
    shown = (host["weights_bytes"] - host["lazy_bytes"]) / GIB
    assert f"        weights {shown:.1f} GiB · " in cli(*argv).out


@pytest.mark.slow
def test_layers_on_the_cpu_explain_the_ladders_speeds(cli: Cli) -> None:
    argv = ("--model", "mistral-7b", "--quant", "Q8_0", "--hardware", "laptop-4060-32")
    answer = cli(*argv, "--json").json
    chosen = answer["settings"]
    on_cpu = answer["model"]["layers"] - chosen["layers_on_gpu"] + chosen["cpu_ffn_layers"]
    on_cpu += chosen["cpu_weight_layers"]
    assert on_cpu > 0
    text = cli(*argv).out
    assert "decode   layers on the CPU\n" in text
    assert f" {on_cpu:>6}  ← this plan" in text


def test_a_long_prompt_gets_a_context_that_holds_it(cli: Cli) -> None:
    argv = ("--model", "qwen3-8b", "--quant", "Q4_K_M", *ONE_CARD, "--json")
    wanted = cli(*argv, "--prompt-tokens", "39000", "--output-tokens", "500").json
    assert 39500 <= wanted["settings"]["context_per_slot"] < 39500 + 1024
    assert cli(*argv).json["settings"]["context_per_slot"] == 32768


@pytest.mark.slow
def test_users_share_the_speed(cli: Cli) -> None:
    argv = ("--model", "qwen3-8b", "--quant", "Q4_K_M", *ONE_CARD, "--ctx", "8192", "--users", "6")
    for more, slots, where in (((), 6, "at once"), (("--parallel", "2"), 2, "on 2 slots")):
        plan = cli(*argv, *more, "--json")
        load = plan.json["speed"]["load"]
        assert plan.json["settings"]["parallel"] == load["slots"] == slots
        assert plan.json["speed"]["aggregate_tok_s"] == load["aggregate_tok_s"]
        assert (load["slot_wait_s"] > 0) == (slots < 6)
        text = cli(*argv, *more).flat
        assert f"6 users {where}, all of them busy: together {rate(load['aggregate_tok_s'])} tok/s" in text
        assert ("in line for a slot" in text) == (slots < 6)


@pytest.mark.slow
def test_a_first_token_too_late_is_said_with_what_would_help(cli: Cli) -> None:
    argv = ("--model", "qwen3-8b", "--quant", "Q4_K_M", *ONE_CARD, "--ctx", "8192")
    late = cli(*argv, "--ttft", "0.2", "--json")
    assert late.code == 0  # it runs
    assert "ttft-not-kept" in {item["id"] for item in late.json["findings"]}
    most = next(item for item in late.json["alternatives"] if item["what"].startswith("--prompt-tokens"))
    kept = cli(*argv, "--ttft", "0.2", *most["what"].split(), "--json").json
    assert kept["speed"]["ttft_s"] <= 0.2
    assert "ttft-not-kept" not in {item["id"] for item in kept["findings"]}
    assert "What would keep the first token: --prompt-tokens" in cli(*argv, "--ttft", "0.2").flat


@pytest.mark.slow
def test_the_explanation_adds_up(cli: Cli) -> None:
    text = cli(*GLM, *ONE_CARD, "--explain").flat
    assert "context costs 109,824 bytes per token at f16" in text
    assert "78 layers run, 1 draft block is left out" in text
    assert "Micro-batches tried" in text


@pytest.mark.slow
def test_the_ladder_holds_the_choice_and_gets_no_lighter(cli: Cli) -> None:
    answer = cli(*GLM, *ONE_CARD, "--json").json
    contexts = [rung["context"] for rung in answer["ladder"]]
    assert contexts == sorted(contexts)
    assert answer["settings"]["context_per_slot"] in contexts
    assert contexts[-1] == answer["model"]["context_train"] == 202752
    experts = [rung["cpu_moe_layers"] for rung in answer["ladder"]]
    assert experts == sorted(experts)


# -- the launcher -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_launcher_is_written_once(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "it's here,\nreally"
    first = cli(*GLM, *ONE_CARD, "--write", str(folder))
    assert first.code == 0
    script = folder / "start-llama-server.sh"
    before = script.read_bytes()
    assert b"-ncmoe" in before
    script.write_bytes(b"mine")
    again = cli(*GLM, *ONE_CARD, "--write", str(folder))
    assert (again.code, script.read_bytes()) == (2, b"mine")
    assert "--force replaces it" in again.err
    assert again.err.count("\n") == 1
    forced = cli(*GLM, *ONE_CARD, "--write", str(folder), "--force")
    assert (forced.code, script.read_bytes()) == (0, before)


@pytest.mark.slow
def test_no_launcher_for_what_does_not_run(cli: Cli, tmp_path: Path) -> None:
    plan = cli(*GLM, "--gpu", "24GiB", "--ram", "64GiB", "--write", str(tmp_path / "out"))
    assert plan.code != 0
    assert "nothing to launch" in plan.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_printed_command_is_the_one_in_the_json(cli: Cli) -> None:
    text = cli(*GLM, *ONE_CARD).out
    block = text.split("Command  (llama.cpp, b11434):\n")[1].split("\n\n")[0]
    assert shlex.split(block.replace("\\\n", " ")) == cli(*GLM, *ONE_CARD, "--json").json["command"]["argv"]


def test_a_folder_is_not_passed_off_as_a_file(cli: Cli, tmp_path: Path) -> None:
    """Of this quant the catalog knows the repository and the size but not how its files are named."""
    model = ("--model", "qwen3.8-flash-next", "--quant", "UD-Q3_K_XL")
    machine = (*model, "--hardware", "mac-studio-m3-ultra-512")
    plan = cli(*machine)
    assert plan.code == 0
    assert "the names of the files in unsloth/Qwen3.8-Flash-Next-GGUF are not known here" in plan.flat
    assert "--model hf:unsloth/Qwen3.8-Flash-Next-GGUF:" in plan.flat
    refused = cli(*machine, "--write", tmp_path / "launch")
    assert refused.code == 2
    assert "are not known here" in refused.err
    assert not (tmp_path / "launch").exists()


@pytest.mark.slow
def test_why_experts_are_not_pinned(cli: Cli) -> None:
    asked = ("--model", "qwen3-30b-a3b", "--quant", "Q4_K_M", "--gpu", "16GiB", "--ram")
    text = cli(*asked, "20GiB").flat
    assert "the experts on the CPU are mapped from the file, not pinned" in text
    assert "less than 16.0 GiB of memory" in text
    assert "--load-mode none" in cli(*asked, "64GiB").out


@pytest.mark.slow
def test_an_older_build_is_planned_with_what_it_reserves(cli: Cli) -> None:
    """llama-fit-params b9093 (simulate_cuda_on_rpc.py applied, one card of 24 GiB) printed `RPC0 4403 8192 701` and
    `Host 281 0 288` for -c 65536 -np 1 -ngl all -ub 1024 -fa on; it reserves the same for every program.
    """
    argv = (
        "--model",
        "llama-3.1-8b",
        "--quant",
        "Q4_K_M",
        "--gpu",
        "24GiB",
        "--ram",
        "64GiB",
        "--ctx",
        "64K",
    )
    pins = ("--pin", "ubatch=1024", "--json")
    now, then = cli(*argv, *pins).json, cli(*argv, *pins, "--engine-build", "b9093").json
    (card,), host = then["memory"]["devices"], then["memory"]["host"]
    real = {"weights_bytes": 4403, "context_bytes": 8192, "compute_bytes": 701}
    assert {key: card[key] >> 20 for key in real} == real
    assert host["compute_bytes"] >> 20 == 288
    assert now["memory"]["devices"][0]["compute_bytes"] < 0.6 * card["compute_bytes"]
    assert "every token" in next(
        item["text"] for item in then["findings"] if item["id"] == "memory-of-other-build"
    )
    newer = cli(*argv, *pins, "--engine-build", "b99999").json
    assert newer["memory"] == now["memory"]
    assert "is newer" in next(
        item["text"] for item in newer["findings"] if item["id"] == "memory-of-other-build"
    )


@pytest.mark.slow
def test_the_command_is_spelled_for_the_build_that_is_named(cli: Cli) -> None:
    """-fa has no value in b6324, and there is no --fit and no --cache-ram (llama-cpp-python 0.3.16, common/arg.cpp)."""
    argv = (
        "--model",
        "qwen3-8b",
        "--quant",
        "Q4_K_M",
        "--gpu",
        "24GiB",
        "--ram",
        "64GiB",
        "--ctx",
        "8K",
        "--json",
    )
    words = cli(*argv, "--engine-build", "b6324").json["command"]["argv"]
    assert words[words.index("-fa") + 1].startswith("-")
    assert not {"--fit", "--cache-ram", "--load-mode"} & set(words)
    glm = cli("--model", "glm-5.1", "--quant", "UD-IQ2_M", *argv[4:], "--engine-build", "b6324").json
    said = {item["id"]: item for item in glm["findings"]}
    assert said["architecture-needs-newer-build"]["severity"] == "error"
    assert "b8643 at the latest" in said["architecture-needs-newer-build"]["text"]
