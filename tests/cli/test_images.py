"""Vision models: what a plan, a check and an inspection say of the projector."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.models.writer import write_header
from tests.cli.conftest import GIB, Cli
from tests.projector_cases import recorded, tower

CARD = ("--gpu", "24GiB", "--ram", "64GiB", "--cpu-cores", "8")
VISION = ("--model", "qwen2.5-vl-7b", "--quant", "Q4_K_M", *CARD)
# of the engine, on a simulated card (tests/data/projectors): the largest image, and the warm-up
MEASURED = next(case for case in recorded() if case.id == "qwen2.5-vl-7b-F16-gpu")
LARGEST, WARMUP = (
    MEASURED.answer["images"][0]["compute"]["RPC0"],
    MEASURED.answer["compute"]["RPC0"],
)
HOST = MEASURED.answer["images"][0]["compute"]["CPU"]
WEIGHTS = MEASURED.answer["weights"]["RPC0"]


def test_a_plan_counts_the_projector_on_its_card(cli: Cli) -> None:
    answer = cli(*VISION, "--json").json
    (card,), host, projector = (answer["memory"][key] for key in ("devices", "host", "projector"))
    assert projector["device"] == 0
    # CUDA aligns tensors to 128 bytes, the measured stand-in to 32
    assert projector["weights_bytes"] == pytest.approx(WEIGHTS, abs=519 * 128)
    assert projector["compute_bytes"] == pytest.approx(LARGEST, abs=4096)
    assert projector["warmup_compute_bytes"] == pytest.approx(WARMUP, abs=4096)
    assert projector["tokens_per_image"] == 4096
    assert card["projector_bytes"] == projector["weights_bytes"] + projector["compute_bytes"]
    assert card["overhead_bytes"] - card["projector_bytes"] == 630 * 1024**2  # the driver's
    parts = ("weights_bytes", "context_bytes", "compute_bytes", "overhead_bytes")
    assert card["total_bytes"] == sum(card[part] for part in parts)
    assert host["projector_bytes"] == projector["host_compute_bytes"] == pytest.approx(HOST, abs=4096)
    assert answer["memory"]["pools"][1]["used_bytes"] == card["total_bytes"]
    argv = answer["command"]["argv"]
    assert argv[argv.index("--mmproj") + 1] == answer["model"]["projector"]["path"]
    assert answer["model"]["projector"]["download"]["argv"][:2] == ["hf", "download"]
    assert "projector-counted" in {item["id"] for item in answer["findings"]}


def test_text_only(cli: Cli) -> None:
    with_images, without = cli(*VISION, "--json").json, cli(*VISION, "--no-mmproj", "--json").json
    assert without["memory"]["projector"] is without["model"]["projector"] is None
    assert "--mmproj" not in without["command"]["argv"]
    (card,), (bare,) = (answer["memory"]["devices"] for answer in (with_images, without))
    assert bare["projector_bytes"] == 0
    for part in ("weights_bytes", "context_bytes", "compute_bytes"):
        assert bare[part] == card[part]


def test_the_screen_says_what_images_cost(cli: Cli) -> None:
    ended = cli(*VISION)
    assert "projector 3.1 GiB" in ended.out
    assert "an image is up to 4,096 tokens" in ended.flat
    assert "--no-mmproj plans for text only" in ended.flat
    assert ended.out.count("hf download ") == 2


def test_smaller_images_are_cheaper(cli: Cli) -> None:
    answer = cli(*VISION, "--pin", "image-max-tokens=1024", "--json").json
    argv = answer["command"]["argv"]
    assert argv[argv.index("--image-max-tokens") + 1] == "1024"
    assert answer["memory"]["projector"]["tokens_per_image"] == 1024
    assert answer["memory"]["projector"]["compute_bytes"] < LARGEST / 3


def test_the_cpu_reads_images_where_it_is_told_to(cli: Cli) -> None:
    answer = cli(*VISION, "--pin", "mmproj-offload=off", "--json").json
    assert "--no-mmproj-offload" in answer["command"]["argv"]
    assert answer["memory"]["devices"][0]["projector_bytes"] == 0
    assert answer["memory"]["projector"]["device"] == "host"
    assert answer["memory"]["host"]["projector_bytes"] > WEIGHTS + LARGEST


@pytest.mark.parametrize(
    ("words", "tokens", "device"),
    [
        (("--mmproj", "m.gguf"), 4096, 0),
        (("--mmproj", "m.gguf", "--image-max-tokens", "2048"), 2048 - 23, 0),  # 45 × 45 patches of tokens
        (("--mmproj", "m.gguf", "--no-mmproj-offload"), 4096, "host"),
        (("--mmproj", "m.gguf", "-mmdev", "none"), 4096, "host"),
        (("--mmproj", "m.gguf", "--mmproj-device", "CUDA1"), 4096, 1),
        (("--mmproj", "m.gguf", "--device", "CUDA1"), 4096, 1),
    ],
)
def test_check_reads_the_words_for_images(
    cli: Cli, words: tuple[str, ...], tokens: int, device: int | str
) -> None:
    command = ("llama-server", "-m", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "-c", "8192", "--fit", "off")
    answer = cli("check", "--gpu", "24GiB*2", "--ram", "64GiB", "--json", "--", *command, *words).json
    projector = answer["memory"]["projector"]
    assert projector["device"] == device
    assert projector["tokens_per_image"] == pytest.approx(tokens, abs=24)
    for index, card in enumerate(answer["memory"]["devices"]):
        assert (card["projector_bytes"] > 0) == (index == device)
    assert "not-counted" not in {item["id"] for item in answer["findings"]}


def test_check_without_a_projector(cli: Cli) -> None:
    command = ("llama-server", "-hf", "ggml-org/Qwen2.5-VL-7B-Instruct-GGUF:Q4_K_M", "-c", "8192")
    answer = cli("check", *CARD, "--json", "--", *command).json
    assert answer["memory"]["projector"]["tokens_per_image"] == 4096  # -hf loads it unasked
    answer = cli("check", *CARD, "--json", "--", *command, "--no-mmproj").json
    assert answer["memory"]["projector"] is None


@pytest.mark.slow
def test_check_corrects_with_the_projector(cli: Cli) -> None:
    words = ("-m", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "-c", "32768", "--mmproj", "m.gguf", "--fit", "off")
    answer = cli("check", "--gpu", "8GiB", "--ram", "64GiB", "--json", "--", "llama-server", *words).json
    assert answer["verdict"] == "does-not-fit"
    argv = answer["command"]["argv"]
    assert argv.count("--mmproj") == 1
    assert argv[argv.index("--mmproj") + 1] == "m.gguf"


@pytest.mark.slow
def test_the_file_beside_the_model_is_taken(cli: Cli, home: Path) -> None:
    ended = cli("inspect", "qwen2.5-vl-7b", "--quant", "Q4_K_M", "--write-header", "model-Q4_K_M.gguf")
    assert ended.code == 0, ended.err
    missing = cli("--model", "model-Q4_K_M.gguf", *CARD, "--json").json
    assert missing["model"]["projector"] is None
    assert "projector-missing" in {item["id"] for item in missing["findings"]}
    write_header(tower("qwen2.5-vl-7b", "Q8_0"), home / "mmproj-Q8_0.gguf")
    answer = cli("--model", "model-Q4_K_M.gguf", *CARD, "--json").json
    assert answer["model"]["projector"]["quant"] == "Q8_0"
    assert answer["memory"]["projector"]["weights_bytes"] < 0.7 * WEIGHTS


def test_inspect_a_projector(cli: Cli, home: Path) -> None:
    write_header(tower("qwen2.5-vl-7b", "F16"), home / "mmproj.gguf")
    text = cli("inspect", "mmproj.gguf").flat
    assert "qwen2.5vl_merger, for --mmproj" in text
    assert "compute 705 MiB at the start and 1.8 GiB after the largest image" in text
    assert "8 to 4,096; the largest is 1792 x 1792 pixels" in text
    facts = cli("inspect", "mmproj.gguf", "--json").json["projector"]
    assert facts["gpu"]["compute_bytes"] == pytest.approx(LARGEST, abs=4096)
    assert cli("inspect", "mmproj.gguf", "--write-header", "x.gguf").code == 2


def test_inspect_a_vision_model(cli: Cli) -> None:
    text = cli("inspect", "qwen2.5-vl-7b").flat
    assert "compute 705 MiB at the start and 1.8 GiB after the largest image" in text
    facts = cli("inspect", "qwen2.5-vl-7b", "--json").json["projector"]
    assert facts["parameters"] == 676_550_144
    assert facts["pixels_per_token"] == 28 * 28
    assert facts["gpu"]["tokens_per_image"] == 4096


def test_a_quant_that_nobody_publishes_has_the_projector_too(cli: Cli) -> None:
    answer = cli("--model", "gemma-3-27b", "--quant", "Q3_K_L", *CARD, "--json").json
    assert answer["memory"]["projector"]["tokens_per_image"] == 256
    assert answer["model"]["projector"]["path"].endswith("mmproj-google_gemma-3-27b-it-f16.gguf")


def test_fit_keeps_room_for_the_projector(cli: Cli) -> None:
    """llama-server adds what mtmd_get_memory_usage finds to --fit's target: weights and the warm-up's buffer."""
    command = ("llama-server", "-m", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "-c", "16384", "-np", "1")
    card = ("--gpu", "8000MiB", "--ram", "64GiB")
    layers = {}
    for words in ((), ("--mmproj", "m.gguf"), ("--mmproj", "m.gguf", "--no-warmup")):
        answer = cli("check", *card, "--json", "--", *command, *words).json
        layers[words] = answer["settings"]["gpu_layers"]
    none, with_warmup, without = layers.values()
    assert with_warmup < without <= none


@pytest.mark.slow
def test_heads_without_flash_attention(cli: Cli) -> None:
    """Llama 4's heads of 88 (ggml_cuda_get_best_fattn_kernel): clip_model_loader::warmup falls back to the CPU."""
    wanted = ("--model", "llama-4-scout", "--quant", "Q4_K_M", "--ram", "128GiB", "--json")
    ids = {item["id"] for item in cli(*wanted, "--gpu", "24GiB").json["findings"]}
    assert "projector-without-flash-attn" in ids
    ids = {item["id"] for item in cli(*VISION, "--json").json["findings"]}
    assert "projector-without-flash-attn" not in ids


def test_an_unknown_tower_is_an_upper_bound(cli: Cli, home: Path) -> None:
    from dataclasses import replace

    plain = tower("gemma-3-4b", "F16")
    odd = replace(plain, hparams={**plain.hparams, "projector_type": "mlp"})
    write_header(odd, home / "odd.gguf")
    answer = cli(*VISION, "--mmproj", "odd.gguf", "--json").json
    assert "projector-estimated" in {item["id"] for item in answer["findings"]}
    measured = next(case for case in recorded() if case.id == "gemma-3-4b-F16-gpu").answer["compute"]["RPC0"]
    assert answer["memory"]["projector"]["compute_bytes"] > measured
    assert answer["memory"]["projector"]["tokens_per_image"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mmproj", "none.gguf"), "none.gguf"),
        (("--mmproj", "model.gguf"), "not a multimodal projector"),
        (("--mmproj", "model.gguf", "--no-mmproj"), "exclude each other"),
        (("--pin", "image-max-tokens=0"), "image-max-tokens takes a number"),
    ],
)
def test_refusals(cli: Cli, home: Path, words: tuple[str, ...], says: str) -> None:
    cli("inspect", "qwen3-0.6b", "--write-header", "model.gguf")
    ended = cli(*VISION, *words)
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.slow
def test_the_split_leaves_room_for_the_projector(cli: Cli) -> None:
    """The first card cannot hold its share of the layers by free memory and the projector."""
    cards = ("--gpu", "9GiB", "--gpu", "14GiB", "--ram", "64GiB", "--cpu-cores", "8")
    answer = cli("--model", "gemma-3-27b", "--quant", "Q4_K_M", *cards, "--ctx", "8192", "--json").json
    assert answer["verdict"] in ("fits", "tight")
    assert answer["settings"]["layers_on_gpu"] == 62
    assert answer["settings"]["cpu_ffn_layers"] == answer["settings"]["cpu_weight_layers"] == 0
    holds = [card["projector_bytes"] > 0 for card in answer["memory"]["devices"]]
    assert sorted(holds) == [False, True]


def test_limits_that_the_engine_refuses(cli: Cli) -> None:
    words = ("-m", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "--mmproj", "m.gguf", "--image-min-tokens", "5000")
    answer = cli("check", *CARD, "--json", "--", "llama-server", *words).json
    assert "projector-limits" in {item["id"] for item in answer["findings"]}


@pytest.mark.slow
def test_a_card_too_small_for_the_projector_leaves_it_to_the_cpu(cli: Cli) -> None:
    answer = cli("--model", "qwen2.5-vl-7b", "--quant", "Q4_K_M", "--gpu", "4GiB", "--ram", "64GiB", "--json")
    found = answer.json
    assert found["verdict"] in ("fits", "tight")
    assert found["memory"]["projector"]["device"] == "host"
    assert "--no-mmproj-offload" in found["command"]["argv"]
    assert found["memory"]["devices"][0]["total_bytes"] < 4 * GIB
    assert "projector-on-cpu" in {item["id"] for item in found["findings"]}
