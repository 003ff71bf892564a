"""Machines described in TOML: what a file may leave out, what it refuses, and that saving loses nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plan_llama.errors import InputError, ProfileError
from plan_llama.hardware import described
from plan_llama.hardware.types import Backend, Cpu, Disk, Gpu, GpuProcess, Limit, Machine, Ram, Source, Vendor
from tests.unit.hardware.support import GIB

DESKTOP = """
schema = 1
id = "desktop"
name = "Ryzen 9 7950X with two RTX 3090"

[[gpu]]
name = "RTX 3090"
count = 2
pcie_width = 8

[ram]
total = "128GiB"
type = "DDR5-5600"
channels = 2

[cpu]
name = "AMD Ryzen 9 7950X"
physical_cores = 16
isa = ["avx2", "avx512"]
"""


@pytest.fixture(autouse=True)
def _table(small_table: Path) -> None:
    """Every test here has the small table."""


def load(tmp_path: Path, text: str) -> Machine:
    path = tmp_path / "machine.toml"
    path.write_text(text)
    return described.load(str(path))


def test_a_short_description_is_filled_from_the_table(tmp_path: Path) -> None:
    machine = load(tmp_path, DESKTOP)
    assert machine.simulated
    assert len(machine.gpus) == 2
    gpu = machine.gpus[0]
    assert (gpu.total_bytes, gpu.free_bytes) == (24 * GIB, 24 * GIB)
    assert (gpu.bandwidth_bytes_per_s, gpu.compute_capability, gpu.pcie_gen, gpu.pcie_width) == (
        936.2e9,
        "8.6",
        4,
        8,
    )
    assert (gpu.sources["pcie_width"], gpu.sources["pcie_gen"]) == ("file", "catalog")
    assert machine.ram.bandwidth_bytes_per_s == pytest.approx(89.6e9)  # 5600 MT/s × 8 bytes × 2
    assert machine.ram.available_bytes // GIB == 125
    assert machine.cpu.isa == ("avx2", "avx512")


def test_one_pool_takes_its_speed_from_the_gpu(tmp_path: Path) -> None:
    text = 'schema = 1\n[[gpu]]\nname = "Strix Halo"\n[ram]\ntotal = "128GiB"\n[cpu]\nphysical_cores = 16\n'
    machine = load(tmp_path, text)
    assert machine.unified
    assert machine.gpus[0].total_bytes == 128 * GIB
    assert machine.ram.bandwidth_bytes_per_s == 256e9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "schema 2 is not known"),
        ("schema = 1", "", "'schema' is missing"),
        ("channels = 2", "chanels = 2", "unknown key chanels"),
        ('total = "128GiB"', "", "'total' is missing"),
        ('total = "128GiB"', 'total = "128"', "expected a size"),
        ('total = "128GiB"', 'total = "128GiB"\navailable = "129GiB"', "'available' is more"),
        ('"DDR5-5600"', '"DDR5-fast"', "DDR5-5600 or DDR4-3200"),
        ('"RTX 3090"', '"RTX 3900"', "does not know 'RTX 3900'"),
        ("count = 2", "count = 0", "'count' must be between 1 and 64"),
        ("count = 2", "count = 2000000000", "'count' must be between"),
        ("count = 2", 'backend = "opengl"', "'backend' must be one of"),
        ("count = 2", 'free = "25GiB"', "'free' is more than 'total'"),
        ("physical_cores = 16", "physical_cores = true", "must be int"),
        ("physical_cores = 16", "", "'physical_cores' is missing"),
        ("channels = 2", "channels = 2\nbandwidth_bytes_per_s = -1.0", "must be a positive number"),
        ("channels = 2", "channels = 2\nbandwidth_bytes_per_s = nan", "must be a positive number"),
    ],
)
def test_what_is_wrong_and_where_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DESKTOP
    with pytest.raises(ProfileError) as caught:
        load(tmp_path, DESKTOP.replace(old, new))
    assert message in caught.value.line()
    assert "machine.toml" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_a_profile_by_name_and_the_nearest_for_a_misspelt_one(small_table: Path) -> None:
    (small_table / "hardware/desktop-3090.toml").write_text(DESKTOP)
    assert described.load("desktop-3090").name == "Ryzen 9 7950X with two RTX 3090"
    with pytest.raises(InputError) as caught:
        described.load("desktop-3900")
    assert "nearest: desktop-3090" in caught.value.line()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"= 3", b"a = " + b"[" * 100_000, b"#" * (1 << 21)])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        described.load(str(path))
    with pytest.raises(InputError):
        described.load(str(tmp_path / "absent.toml"))


def test_saving_overwrites_only_with_force_and_leaves_nothing_behind(tmp_path: Path) -> None:
    machine = load(tmp_path, DESKTOP)
    target = tmp_path / "saved.toml"
    described.save(machine, target)
    with pytest.raises(InputError, match="exists"):
        described.save(machine, target)
    described.save(machine, target, force=True)
    assert described.load(str(target)) == described.portable(machine)
    assert sorted(path.name for path in tmp_path.glob("*saved*")) == ["saved.toml"]
    with pytest.raises(InputError, match="cannot be written"):
        described.save(machine, tmp_path / "no" / "such" / "folder.toml")


def test_private_facts_are_not_saved(tmp_path: Path) -> None:
    gpu = Gpu(
        name="A card",
        total_bytes=GIB,
        free_bytes=GIB,
        uuid="GPU-secret",
        processes=(GpuProcess(pid=1, name="secret", used_bytes=1),),
    )
    machine = Machine(
        name="m",
        gpus=(gpu,),
        ram=Ram(total_bytes=GIB, available_bytes=GIB),
        cpu=Cpu(physical_cores=1, logical_cores=1),
        disk=Disk(path="/home/secret"),
    )
    assert "secret" not in described.dumps(machine, identity="m")


size = st.integers(min_value=1, max_value=1 << 50)
rate = st.floats(min_value=1.0, max_value=1e16)
name = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
source = st.sampled_from(get_args(Source))


def sources(*keys: str) -> st.SearchStrategy[dict[str, Source]]:
    """How some of the values are known; the two that are always there have a source."""
    return st.fixed_dictionaries(dict.fromkeys(keys[:3], source), optional=dict.fromkeys(keys[3:], source))


@st.composite
def gpus(draw: st.DrawFn) -> Gpu:
    total = draw(size)
    optional: dict[str, Any] = {
        "bandwidth_bytes_per_s": rate,
        "fp16_flops_per_s": rate,
        "compute_capability": name,
        "gfx_target": name,
        "pcie_gen": st.integers(1, 8),
        "pcie_width": st.integers(1, 32),
        "pcie_gen_now": st.integers(1, 8),
        "driver": name,
        "display": st.booleans(),
    }
    given_keys = draw(st.sets(st.sampled_from(sorted(optional))))
    values = {key: draw(optional[key]) for key in sorted(given_keys)}
    # Not a name of the table: what the description leaves out would be filled from there.
    gpu_name = "unlisted " + draw(name)
    return Gpu(
        name=gpu_name,
        vendor=draw(st.sampled_from(get_args(Vendor))),
        backend=draw(st.sampled_from(get_args(Backend))),
        integrated=draw(st.booleans()),
        total_bytes=total,
        free_bytes=draw(st.integers(0, total)),
        reserved_bytes=draw(st.integers(0, total)),
        sources=draw(sources("name", "total_bytes", "free_bytes", "backend", *values)),
        **values,
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    total = draw(size)
    limit = Limit(kind="cgroup v2", limit_bytes=draw(size), used_bytes=draw(st.none() | size), where="/sys/x")
    ram = Ram(
        total_bytes=total,
        available_bytes=draw(st.integers(0, total)),
        reserved_bytes=draw(st.integers(0, total)),
        swap_total_bytes=draw(size),
        swap_free_bytes=draw(size),
        memlock_bytes=draw(size),
        limits=draw(st.sampled_from([(), (limit,)])),
        type="DDR5",
        speed_mt_s=draw(st.integers(200, 20000)),
        channels=draw(st.integers(1, 64)),
        bandwidth_bytes_per_s=draw(rate),
        sources=draw(
            sources(
                *("total_bytes", "available_bytes", "swap_total_bytes", "swap_free_bytes", "memlock_bytes"),
                *("type", "speed_mt_s", "channels", "bandwidth_bytes_per_s"),
            )
        ),
    )
    cores = draw(st.integers(1, 512))
    cpu = Cpu(
        name=draw(name),
        physical_cores=cores,
        logical_cores=cores * 2,
        performance_cores=cores,
        usable_cores=cores,
        sockets=2,
        numa_nodes=4,
        isa=("avx2",),
        sources=draw(
            sources(
                *("name", "architecture", "physical_cores", "logical_cores", "performance_cores"),
                *("usable_cores", "sockets", "numa_nodes", "isa"),
            )
        ),
    )
    disk = Disk(path="", free_bytes=draw(size), kind="nvme", sources=draw(sources("free_bytes", "kind")))
    return Machine(
        name=draw(name),
        simulated=True,
        os=draw(st.sampled_from(["linux", "darwin", "windows"])),
        wsl=draw(st.booleans()),
        unified=draw(st.booleans()),
        gpus=tuple(draw(st.lists(gpus(), max_size=3))),
        ram=ram,
        cpu=cpu,
        disk=draw(st.sampled_from([None, disk])),
        rocm_version=draw(st.none() | name),
        sources={"name": "file"},
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(machine=machines())
def test_what_is_saved_is_read_back(machine: Machine) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.toml"
        described.save(machine, path)
        assert described.load(str(path)) == machine
