"""What commands mean. Expected values are read in the source of llama.cpp b11434 (files named beside)."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.refusals import refusals
from plan_llama.hardware.types import Machine
from plan_llama.memory.patterns import EXPERTS
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.models.types import ModelSpec

from .engine_fixtures import GIB, glm, llama, machine
from .test_engine_commandline import GUIDE


def read(line: str, *, on: Machine | None = None, model: ModelSpec | None = None) -> CommandReading:
    parsed = parse(shlex.split(line), table=FlagTable.load())
    return to_settings(parsed, model=model or glm(), machine=on or machine())


def ids(reading: CommandReading) -> list[str]:
    return [finding.id for finding in reading.findings]


def test_llama_server_defaults() -> None:
    # common.h: n_batch 2048, n_ubatch 512, cache_ram_mib 8192, n_ctx_checkpoints 32, fit on;
    # server.cpp: -np unset is 4 slots and a unified cache; llama-model.cpp: -ngl unset is all and the output
    reading = read("llama-server -m x.gguf")
    assert reading.settings == Settings(
        program="llama-server",
        context=202752,
        parallel=4,
        kv_unified=True,
        batch=2048,
        ubatch=512,
        flash_attn=True,
        flash_attn_auto=True,
        gpu_layers=80,
        load_mode="mmap",
        cache_ram_bytes=8 * GIB,
        ctx_checkpoints=32,
    )
    assert (reading.fit_enabled, reading.user_set, reading.flash_attn) == (True, frozenset(), "auto")
    assert reading.findings == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # fit-params.cpp uses common_params as they are: one sequence, caches of the server unused
        ("llama-fit-params -m x.gguf -c 4096", (4096, 1, False, 0, 0)),
        ("llama-cli -m x.gguf -c 4096", (4096, 1, False, 8 * GIB, 32)),
        # llama-bench.cpp: n_ctx = n_prompt + n_gen + n_depth of one test, padded to 256 by llama_context
        ("llama-bench -m x.gguf", (512, 1, False, 0, 0)),
        ("llama-bench -m x.gguf -p 512,2048 -n 128 -d 4096", (6144, 1, False, 0, 0)),
        ("llama-bench -m x.gguf -p 0 -n 0 -pg 1000,100", (1280, 1, False, 0, 0)),
        ("llama-server -m x.gguf -c 32768 -np 2", (32768, 2, False, 8 * GIB, 32)),
        ("llama-server -m x.gguf -c 32768 -np 2 -kvu", (32768, 2, True, 8 * GIB, 32)),
        ("llama-server -m x.gguf -c 10000 -np 3 --cache-ram 0", (10752, 3, False, 0, 32)),
        ("llama-server -m x.gguf -np 2 -kvu --kv-unified-per-slot 65536", (131072, 2, True, 8 * GIB, 32)),
        ("llama-server -m x.gguf -c 0", (202752, 4, True, 8 * GIB, 32)),
    ],
)
def test_context_slots_and_caches(line: str, expected: tuple[int, int, bool, int, int]) -> None:
    settings = read(line).settings
    found = (settings.context, settings.parallel, settings.kv_unified, settings.cache_ram_bytes)
    assert (*found, settings.ctx_checkpoints) == expected


def test_the_guides_command_is_read_as_meant() -> None:
    reading = read(GUIDE)
    assert (reading.settings.gpu_layers, reading.settings.load_mode) == (47, "mmap+mlock")
    assert (reading.settings.context, reading.flash_attn) == (4096, "on")
    errors = {
        finding.text.split(":")[0]: finding.id for finding in reading.findings if finding.severity == "error"
    }
    assert errors == {
        "--mmap": "flag-removed",
        "--mlock": "flag-removed",
        "--flash-attn --defrag-thold": "flash-attn-needs-value",
    }
    notes = [finding.text for finding in reading.findings if finding.severity == "note"]
    assert len(notes) == 2
    assert notes[0].startswith("--defrag-thold 0.1")
    assert notes[1].startswith("-ngl 47")
    assert reading.user_set == {"ctx", "ngl"}


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ("", "mmap"),
        ("--mmap", "mmap"),
        ("--no-mmap", "none"),
        ("--mlock", "mmap+mlock"),  # mmap was on unless --no-mmap was given
        ("--no-mmap --mlock", "mlock"),
        ("--direct-io", "dio"),
        ("--mlock --load-mode none", "none"),
        ("--load-mode mlock", "mlock"),
    ],
)
def test_load_mode(arguments: str, mode: str) -> None:
    assert read(f"llama-server -m x.gguf {arguments}").settings.load_mode == mode


def test_an_integrated_gpu_has_no_mmap() -> None:
    # ggml-cuda.cu: mmap_support = type != IGPU; ggml-metal.cpp: true
    assert read("llama-server", on=machine(integrated=True)).settings.load_mode == "none"
    assert read("llama-server", on=machine(backend="metal", integrated=True)).settings.load_mode == "mmap"


def test_overrides_in_the_order_of_the_command_line() -> None:
    line = "llama-server -ot 'blk\\.3\\.=CUDA1,output=CPU' --n-cpu-moe 2 -cmoe"
    found = read(line, on=machine(2)).settings.overrides
    assert found == (
        Override(pattern=r"blk\.3\.", device=1),
        Override(pattern="output", device=HOST),
        Override(pattern=rf"blk\.0{EXPERTS}", device=HOST),
        Override(pattern=rf"blk\.1{EXPERTS}", device=HOST),
        Override(pattern=EXPERTS, device=HOST),
    )
    # llama-bench.cpp merges -ncmoe behind -ot, whatever their order
    bench = read("llama-bench -ncmoe 1 -ot 'a=CUDA0;b=CPU'").settings.overrides
    assert [item.pattern for item in bench] == ["a", "b", rf"blk\.0{EXPERTS}"]


def test_buffers_that_the_engine_does_not_know_are_errors_and_read_as_meant() -> None:
    reading = read("llama-server -ot 'exps=CUDA_Host,a=ROCm0,b=CUDA7,c(=CPU,(?i)d=CPU'")
    assert [(item.pattern, item.device) for item in reading.settings.overrides] == [("exps", HOST), ("a", 0)]
    assert ids(reading) == ["unknown-buffer-type"] * 3 + ["bad-override-pattern"] * 2


def test_devices() -> None:
    two = machine(2)
    one = read("llama-server -dev CUDA1", on=two)
    assert (one.devices, one.settings.devices, one.settings.tensor_split) == ((1,), (1,), ())
    turned = read("llama-server -dev CUDA1,CUDA0 -ts 3,1", on=two).settings
    assert (turned.devices, turned.tensor_split) == ((1, 0), (1.0, 3.0))
    assert read("llama-server -sm none -mg 1", on=two).devices == (1,)
    assert read("llama-server -dev none", on=two).settings.gpu_layers == 0
    assert read("llama-server -ts 3/1", on=two).settings.tensor_split == (3.0, 1.0)
    assert ids(read("llama-server -dev CUDA9", on=two)) == ["unknown-device"]
    assert read("llama-server", on=machine(0)).settings.gpu_layers == 0


def test_what_settings_do_not_hold_is_said() -> None:
    reading = read("llama-server --mmproj m.gguf -md d.gguf --cache-ram -1 -c 32k --gpt-oss-20b-default")
    assert ids(reading).count("not-counted") == 2
    assert {"prompt-cache-host-growth", "flag-odd-value"} <= set(ids(reading))
    assert reading.settings.context == 256


def test_fit_of_each_program() -> None:
    assert not read("llama-server --fit off").fit_enabled
    assert not read("llama-bench").fit_enabled
    assert not read("llama-fit-params -fitp on").fit_enabled
    both = read("llama-fit-params -fitt 512,2048 -c 0 -ngl auto")
    assert (both.fit_enabled, both.fit_targets_bytes) == (True, (GIB // 2, 2 * GIB))
    assert both.user_set == {"ctx"}
    assert both.fit_min_context is None


def test_drafting_with_the_models_own_block() -> None:
    plain = read("llama-server --spec-type draft-mtp").settings
    # common_params_speculative_draft, common/common.h
    assert (plain.draft_layers, plain.draft_tokens, plain.draft_kv_type_k) == (True, 3, "f16")
    line = "llama-server --spec-type ngram-simple,draft-mtp --spec-draft-n-max 8 -ctkd q8_0 -ctvd q4_0"
    given = read(line).settings
    assert (given.draft_tokens, given.draft_kv_type_k, given.draft_kv_type_v) == (8, "q8_0", "q4_0")


@pytest.mark.parametrize(
    ("arguments", "model", "ident"),
    [
        ("-ctv q8_0 -ctk q8_0 -fa off", llama(), "kv-quant-needs-fa"),
        ("-ctk q8_0", glm(), "kv-type-combo-unsupported"),
        ("-sm tensor -fa off", llama(), "flash-attn-unsupported"),
        # measured: GGML_ASSERT(a->ne[0] == b->ne[0]) at the start, with `-fa on` and without `-fa`
        ("-ub 256", replace(llama(), architecture="plm"), "flash-attn-unsupported"),
        # measured: GGML_ASSERT(ggml_can_repeat(b, a)) at the start
        ("-np 2", replace(llama(), architecture="t5"), "slots-unsupported"),
        # llama_context's constructor, src/llama-context.cpp: "requires ctx_other to be set"
        ("", replace(llama(), architecture="gemma4-assistant"), "draft-model-alone"),
        ("--spec-type draft-mtp", llama(), "draft-layers-missing"),
    ],
)
def test_combinations_that_the_engine_refuses(arguments: str, model: ModelSpec, ident: str) -> None:
    reading = read(f"llama-server {arguments}", model=model)
    found = refusals(reading.settings, table=ModelTable(model), flash_attn=reading.flash_attn)
    assert [finding.id for finding in found] == [ident]


def test_combinations_that_the_engine_takes() -> None:
    for line, model in (("llama-server -ctk q8_0 -ctv q8_0", glm()), ("llama-server -ctk q8_0", llama())):
        reading = read(line, model=model)
        assert refusals(reading.settings, table=ModelTable(model), flash_attn=reading.flash_attn) == ()


def test_a_model_that_drafts_has_settings_of_its_own() -> None:
    line = "llama-server -ngl 99 -c 8192 -np 2 -ctk q8_0 -md small.gguf -ngld 3 -ctkd q4_0 -cmoed"
    model = replace(llama(), draft=llama())
    given = read(f"{line} --spec-type draft-simple --spec-draft-n-max 8", model=model).settings
    assert given.verified_tokens == 8
    assert given.draft is not None
    assert (given.draft.gpu_layers, given.draft.kv_type_k, given.draft.kv_type_v) == (3, "q4_0", "f16")
    assert (given.draft.verified_tokens, given.draft.parallel) == (0, 2)
    assert (len(given.overrides), len(given.draft.overrides)) == (0, 1)
    everything = read("llama-server -md small.gguf -ngl 1", model=model).settings.draft
    assert everything is not None
    assert everything.gpu_layers == llama().blocks + 1  # -ngld is auto


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("", 0),
        ("--spec-type ngram-simple", 48),
        ("--spec-type ngram-mod,ngram-cache", 64),
        ("--spec-type ngram-mod --spec-ngram-mod-n-max 5", 5),
        ("--spec-type ngram-cache", 8),
        ("--spec-type draft-mtp", 0),  # by its own block: draft_tokens
    ],
)
def test_tokens_that_one_batch_verifies(words: str, tokens: int) -> None:
    """common_speculative_n_max and common_params_speculative, b11434."""
    assert read(f"llama-server {words}").settings.verified_tokens == tokens


def test_tokens_that_states_are_kept_for() -> None:
    for words, kept in (
        ("draft-simple", 0),
        ("draft-eagle3", 8),
        ("ngram-mod", 0),
        ("ngram-mod,draft-dflash", 8),
    ):
        given = read(f"llama-server --spec-type {words} --spec-draft-n-max 8").settings
        assert given.kept_tokens == kept


def test_a_draft_model_that_drafts_nothing_is_named() -> None:
    model = replace(llama(), draft=llama())
    for words, said in (("", True), ("--spec-type draft-simple", False)):
        ids = [item.id for item in read(f"llama-server -md small.gguf {words}", model=model).findings]
        assert ("draft-model-idle" in ids) is said
        assert "not-counted" not in ids
    assert "not-counted" in [item.id for item in read("llama-server -md small.gguf").findings]
