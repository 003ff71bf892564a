"""The real llama-quantize chooses the types and reckons the sizes that plan-llama predicts."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.errors import ModelError
from plan_llama.models import quant_mix
from plan_llama.models.spec import load
from plan_llama.models.writer import write_header
from tests import gguf_builder as build
from tests.engine import processes

pytestmark = pytest.mark.engine
MIB = 1 << 20

# [ 12/ 459] NAME - [ 2880, 32, 1, 1], type = bf16, size = 0.176 MiB -> 0.09 MiB (q8_0)
_LINE = re.compile(
    r"\[ *[0-9]+/ *[0-9]+\] +(\S+) +- \[.*?\], type = +(\S+), size = .*?(?:-> .*\((\S+)\))?$", re.MULTILINE
)
_TOTAL = re.compile(r"quant size +=\s+([0-9.]+) MiB")


def an_imatrix(path: Path) -> Path:
    """An importance matrix in llama.cpp's older format, for one tensor: that there is one is what counts."""
    name = b"blk.0.attn_q.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii4f", 1, 4, 1.0, 1.0, 1.0, 1.0)
    path.write_bytes(struct.pack("<i", 1) + entry)
    return path


def dry_run(
    engine_bin: Path, source: Path, mix: str, imatrix: Path | None
) -> tuple[list[tuple[str, str]], float]:
    """Names and types in the order of the file, and the size of the tensors in MiB."""
    given: list[str | Path] = ["--imatrix", imatrix] if imatrix else []
    done = processes.finished(
        [engine_bin / "llama-quantize", "--dry-run", *given, source, mix],
        env=processes.engine_env(engine_bin),
        timeout_s=60,
        # llama-quantize maps the whole file, which is a hole, and reads none of it.
        address_space_bytes=processes.ADDRESS_SPACE_BYTES + source.stat().st_size,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    total = _TOTAL.search(said)
    assert total, said[-2000:]
    return [(name, after or before) for name, before, after in _LINE.findall(said)], float(total[1])


@pytest.mark.parametrize(
    ("name", "mix", "imatrix"),
    [
        ("llama-3.1-8b-q4_k_m", "Q4_K_M", False),
        ("llama-3.1-8b-q4_k_m", "IQ3_XXS", True),
        ("qwen3-30b-a3b-q4_k_m", "IQ3_XS", False),
        ("qwen3.5-35b-a3b-q4_k_m", "MXFP4_MOE", False),
        ("granite-4.0-h-small-q4_k_m", "Q2_K_S", True),
        ("glm-5.1-ud-iq2", "IQ2_M", True),
        ("glm-4.5-air-q4_k_m", "Q3_K_L", False),
        ("deepseek-v3.1-iq2_xxs", "TQ1_0", False),
        ("gemma-3-27b-q4_0", "Q5_0", True),
        ("gpt-oss-20b-mxfp4", "IQ4_XS", False),
    ],
)
def test_llama_quantize_agrees(name: str, mix: str, imatrix: bool, engine_bin: Path, tmp_path: Path) -> None:
    captured = load(build.oracle_file(name, tmp_path))
    shapes = [(tensor.name, tensor.shape) for tensor in captured.tensors]
    spec = replace(captured, quant="BF16", tensors=quant_mix.converted(captured.architecture, shapes))
    source = tmp_path / "source.gguf"
    write_header(spec, source)
    matrix = an_imatrix(tmp_path / "imatrix.dat") if imatrix else None
    chosen, size_mib = dry_run(engine_bin, source, mix, matrix)
    tensors = quant_mix.quantise(spec.architecture, spec.hparams, spec.tensors, mix, imatrix=imatrix)
    assert [(tensor.name, tensor.type.name) for tensor in tensors] == chosen
    assert sum(tensor.nbytes for tensor in tensors) / MIB == pytest.approx(size_mib, abs=0.0051)


@pytest.mark.parametrize(
    ("mix", "imatrix"), [("Q4_K_M", False), ("IQ3_XXS", True), ("MXFP4_MOE", False), ("Q1_0", False)]
)
def test_llama_quantize_agrees_on_every_small_architecture(
    mix: str, imatrix: bool, tiny_archs: dict[str, Path], engine_bin: Path, tmp_path: Path
) -> None:
    """Real files of 100 architectures, whose short rows need substitutes; what one refuses the other does too."""
    matrix = an_imatrix(tmp_path / "imatrix.dat") if imatrix else None
    specs = {spec.architecture: (path, spec) for path, spec in ((p, load(p)) for p in tiny_archs.values())}
    assert len(specs) > 90
    for path, spec in specs.values():
        try:
            tensors = quant_mix.quantise(spec.architecture, spec.hparams, spec.tensors, mix, imatrix=imatrix)
        except ModelError:
            with pytest.raises(AssertionError, match="no tensor type fallback"):
                dry_run(engine_bin, path, mix, matrix)
            continue
        chosen, _ = dry_run(engine_bin, path, mix, matrix)
        assert [(tensor.name, tensor.type.name) for tensor in tensors] == chosen, path.name


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "IQ4_NL"])
def test_a_file_that_is_made_is_the_one_that_was_predicted(
    mix: str, tiny_archs: dict[str, Path], engine_bin: Path, tmp_path: Path
) -> None:
    """Order, types and bytes, but for what llama-quantize adds to the metadata."""
    source, made = tiny_archs["llama-dense"], tmp_path / "made.gguf"
    spec = load(source)
    words = quant_mix.command(str(source), str(made), mix, binary=str(engine_bin / "llama-quantize"))
    done = processes.finished(list(words), env=processes.engine_env(engine_bin), timeout_s=60)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    tensors = quant_mix.quantise(spec.architecture, spec.hparams, spec.tensors, mix)
    assert load(made).tensors == tensors
    before = quant_mix.file_size(spec.tensors, vocab_size=0, vocabulary_bytes=0)
    metadata = source.stat().st_size - before.total_bytes
    predicted = quant_mix.file_size(tensors, vocab_size=0, vocabulary_bytes=metadata)
    assert made.stat().st_size == pytest.approx(predicted.total_bytes, abs=256)
