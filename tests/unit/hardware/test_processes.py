"""Processes watched through /proc: a tree made by hand, and real children of this one."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from plan_llama.hardware import processes
from plan_llama.hardware.processes import Watch, groups, tree, usage

MIB = 1024**2
STATUS = """Name:\t{name}
Pid:\t{pid}
VmPeak:\t  20480 kB
VmLck:\t      16 kB
VmHWM:\t   {peak} kB
VmRSS:\t    2048 kB
VmSwap:\t    512 kB
Threads:\t7
Cpus_allowed_list:\t0-3
"""
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max address space         1073741824           unlimited            bytes
Max locked memory         unlimited            unlimited            bytes
"""


def process(
    root: Path, pid: int, parent: int, session: int, *, name: str = "llama-server", peak: int = 4096
) -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("status").write_text(STATUS.format(name=name, pid=pid, peak=peak))
    folder.joinpath("limits").write_text(LIMITS)
    folder.joinpath("stat").write_text(
        f"{pid} ({name}) S {parent} {pid} {session} 0 -1 4194304 9 0 31 0 1 2 3\n"
    )


def group_v2(root: Path, *, limit: str, kills: int, current: int = 900) -> None:
    folder = root / "sys/fs/cgroup/box"
    folder.mkdir(parents=True, exist_ok=True)
    proc = root / "proc"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (proc / "self/mountinfo").write_text("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (proc / "self/cgroup").write_text("0::/\n")
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 4\noom 1\noom_kill {kills}\n")


def test_a_process_is_read_whole(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 10, name="a (b) c")
    found = usage(10, tmp_path)
    assert found is not None
    assert (found.rss_bytes, found.rss_peak_bytes, found.address_peak_bytes) == (2 * MIB, 4 * MIB, 20 * MIB)
    assert (found.swap_bytes, found.locked_bytes, found.major_faults) == (MIB // 2, 16 * 1024, 31)
    assert (found.threads, found.cpus) == (7, "0-3")
    assert (found.address_limit_bytes, found.memlock_limit_bytes) == (1 << 30, None)
    assert usage(11, tmp_path) is None


def test_the_tree_holds_children_and_those_left_behind_in_the_session(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 10)
    process(tmp_path, 11, 10, 99)
    process(tmp_path, 12, 11, 99)
    process(tmp_path, 13, 1, 10)
    process(tmp_path, 14, 1, 14)
    assert tree(10, tmp_path) == (10, 11, 12, 13)


def test_a_group_of_the_process_tells_limit_and_kills(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 10)
    group_v2(tmp_path, limit="1048576", kills=2)
    (tmp_path / "proc/10/cgroup").write_text("0::/box\n")
    (found,) = groups(10, tmp_path)
    assert (found.where, found.limit_bytes, found.used_bytes, found.kills) == (
        "/sys/fs/cgroup/box/memory.max",
        MIB,
        900,
        2,
    )
    assert groups(sysroot=tmp_path) == ()


def test_kills_before_the_watch_are_not_counted(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 10)
    group_v2(tmp_path, limit="1048576", kills=5)
    (tmp_path / "proc/10/cgroup").write_text("0::/box\n")
    watch = Watch(10, tmp_path)
    watch.look()
    assert max(watch.kills.values()) == 0
    group_v2(tmp_path, limit="1048576", kills=6, current=1000)
    (tmp_path / "proc/10/cgroup").unlink()  # the process has gone with it
    watch.look_at_groups()
    assert max(watch.kills.values()) == 1
    assert max(watch.group_peak_bytes.values()) == 1000


def test_cgroup_v1_counts_too(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 10)
    folder = tmp_path / "sys/fs/cgroup/memory/box"
    folder.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir()
    mount = "31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    (tmp_path / "proc/self/mountinfo").write_text(mount)
    (tmp_path / "proc/10/cgroup").write_text("4:memory:/box\n")
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (found,) = groups(10, tmp_path)
    assert (found.limit_bytes, found.kills) == (None, 3)


def test_a_real_child_its_limit_and_its_peak() -> None:
    """64 MiB are touched and given back: only the peak tells of them."""
    code = "x = bytearray(64 << 20); del x; print('now', flush=True); import time; time.sleep(60)"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=limited)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        watch = Watch(child.pid)
        watch.look()
        assert watch.rss_peak_bytes > 64 * MIB
        assert watch.address is not None
        limit, peak = watch.address
        assert limit == 2 << 30
        assert 64 * MIB < peak < limit
    finally:
        child.kill()
        child.communicate()
    watch.look()
    assert watch.rss_peak_bytes > 64 * MIB


def test_children_are_counted_together() -> None:
    code = (
        "import subprocess, sys, time\n"
        "c = subprocess.Popen([sys.executable, '-c', \"x = bytearray(48 << 20); print('up', flush=True);"
        ' import time; time.sleep(60)"], stdout=subprocess.PIPE)\n'
        "c.stdout.readline(); x = bytearray(48 << 20); print('up', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        watch = Watch(child.pid)
        watch.look()
        assert len(watch.latest) == 2
        assert watch.rss_peak_bytes > 96 * MIB
    finally:
        os.killpg(child.pid, 9)
        child.communicate()


def thread(root: Path, number: int, ticks: int, processor: int) -> None:
    folder = root / f"proc/7/task/{number}"
    folder.mkdir(parents=True, exist_ok=True)
    # utime and stime are the 14th and 15th field of proc(5), the processor the 39th
    words = ["S", "1", "7", "7", *["0"] * 7, str(ticks), "0", *["0"] * 23, str(processor), "0"]
    (folder / "stat").write_text(f"{number} (llama (x) y) {' '.join(words)}\n")


def test_threads_with_their_work_and_place(tmp_path: Path) -> None:
    thread(tmp_path, 7, 120, 3)
    thread(tmp_path, 8, 4, 0)
    found = processes.threads(7, tmp_path)
    assert {number: (item.ticks, item.processor) for number, item in found.items()} == {
        7: (120, 3),
        8: (4, 0),
    }
    assert processes.threads(9, tmp_path) == {}
    mine = processes.threads(os.getpid())
    assert os.getpid() in mine
    assert all(item.processor < 4096 for item in mine.values())


def test_cores_and_nodes_of_processors(tmp_path: Path) -> None:
    for one, text in ((0, "0,2"), (2, "0,2"), (1, "1,3"), (3, "1,3")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{one}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text)
    for node, text in ((0, "0,2"), (1, "1,3")):
        (tmp_path / f"sys/devices/system/node/node{node}").mkdir(parents=True)
        (tmp_path / f"sys/devices/system/node/node{node}/cpulist").write_text(text)
    assert (processes.cores_of({0, 2}, tmp_path), processes.nodes_of({0, 2}, tmp_path)) == (1, 1)
    assert (processes.cores_of({0, 1, 3}, tmp_path), processes.nodes_of({0, 1}, tmp_path)) == (2, 2)
    assert (processes.cores_of({9}, tmp_path), processes.nodes_of({9}, tmp_path)) == (1, 1)


def test_what_went_to_swap_and_came_from_it(tmp_path: Path) -> None:
    assert processes.swapped_pages(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\npswpin 30\npswpout 12\n")
    assert processes.swapped_pages(tmp_path) == 42
