"""Written headers: read back by the gguf package's format, byte for byte what the captured headers hold."""

from __future__ import annotations

import gzip
from pathlib import Path

import gguf
import pytest

from plan_llama.errors import InputError
from plan_llama.models.catalog_models import resolve
from plan_llama.models.spec import load
from plan_llama.models.writer import write_header
from tests import gguf_builder as build


@pytest.mark.parametrize("name", ["glm-5.1-ud-iq2", "gpt-oss-20b-mxfp4", "granite-4.0-h-small-q4_k_m"])
def test_a_captured_model_written_again(name: str, tmp_path: Path) -> None:
    real = load(build.oracle_file(name, tmp_path))
    path = tmp_path / "again.gguf"
    size = write_header(real, path)
    again = load(path)
    assert (again.tensors, again.hparams) == (real.tensors, real.hparams)
    assert (again.name, again.quant, again.vocab_size) == (real.name, real.quant, real.vocab_size)
    assert size == path.stat().st_size == again.file_bytes
    assert abs(size - real.file_bytes) < 4096


def test_the_vocabulary_is_that_of_the_captured_header(tmp_path: Path) -> None:
    write_header(resolve("glm-5.1"), tmp_path / "m.gguf")
    captured = gzip.decompress((build.ORACLE / "models" / "glm-5.1-ud-iq2.hdr.gz").read_bytes())
    with (tmp_path / "m.gguf").open("rb") as file:
        written = file.read(len(captured))
    start, end = (captured.index(mark) for mark in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges"))
    place = written.index(b"tokenizer.ggml.tokens")
    assert written[place : place + end - start] == captured[start:end]


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_header(load(build.write(tmp_path / "tiny.gguf")), path)
    theirs = gguf.GGUFReader(path)
    assert [(t.name, [int(n) for n in t.shape]) for t in theirs.tensors] == [
        (name, list(shape)) for name, shape, _ in build.TINY_TENSORS
    ]
    field = theirs.get_field("llama.block_count")
    assert field is not None
    assert field.contents() == 1


def test_it_takes_little_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert write_header(resolve("glm-5.1", "BF16"), path) > 1_500_000_000_000
    assert path.stat().st_blocks * 512 < 16 << 20


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    spec = load(build.write(tmp_path / "tiny.gguf"))
    with pytest.raises(InputError, match="already there"):
        write_header(spec, path)
    assert path.read_text() == "mine"
    write_header(spec, path, force=True)
    assert load(path).tensors == spec.tensors
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.gguf", "tiny.gguf"}


def test_no_such_folder(tmp_path: Path) -> None:
    spec = load(build.write(tmp_path / "tiny.gguf"))
    with pytest.raises(InputError, match="cannot be written"):
        write_header(spec, tmp_path / "none" / "m.gguf")
