"""The number of threads, and how they wait: on trees of files as the kernel shows cgroups, and in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.compute.threads import usable_cores, variables
from tests.conftest import REPOSITORY

ALLOWED = len(os.sched_getaffinity(0))


def version_1(folder: str, quota: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": "100000"}


# Lines of /proc/self/cgroup, the files of the tree, and the quota in cores.
TREES = {
    "no cgroups": ("", {}, 99.0),
    "v2, no limit": ("0::/", {"cpu.max": "max 100000"}, 99.0),
    "v2, a container's own root": ("0::/", {"cpu.max": "100000 100000"}, 1.0),
    "v2, above a service": ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
    "v2, path of the host": ("0::/docker/4f", {"cpu.max": "20000 100000"}, 0.2),
    "v1": ("3:cpu,cpuacct:/x", version_1("cpu,cpuacct/x", 90000), 0.9),
    "v1, path of the host": ("3:cpuacct,cpu:/docker/4f", version_1("cpu", 90000), 0.9),
    "v1, no limit": ("3:cpu:/", version_1("cpu", -1), 99.0),
    "v1 beside v2": ("0::/\n3:cpu:/", version_1("cpu", 1000), 0.01),
    "not cpu": ("3:cpuset:/", version_1("cpuset", 1000), 99.0),
    "damaged": ("0::/", {"cpu.max": "what"}, 99.0),
}


def tree(root: Path, lines: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize("case", TREES)
def test_quotas_of_both_versions_limit_the_threads(case: str, tmp_path: Path) -> None:
    lines, files, quota = TREES[case]
    assert usable_cores(root=tree(tmp_path, lines, files)) == (1 if quota <= 1 else ALLOWED)


@pytest.mark.skipif(ALLOWED < 2, reason="one core")
def test_a_quota_is_rounded_up_and_shared(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", {"cpu.max": "150000 100000"})
    assert (usable_cores(root=root), usable_cores(2, root), usable_cores(8, root)) == (2, 1, 1)


def test_the_users_own_settings_win() -> None:
    assert variables({"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}) == {}
    assert set(variables({"GOMP_SPINCOUNT": "7"})) == {"OMP_NUM_THREADS"}
    assert variables({"OMP_NUM_THREADS": "3"}, threads=1)["OMP_NUM_THREADS"] == "1"
    assert variables({})["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("program", ["models", "worker"])
def test_programs_set_them_before_torch_is_loaded(program: str) -> None:
    """Torch itself tells what it has read."""
    code = f"""
import sys, runpy
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            import os
            print(*map(os.environ.get, ["OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Spy())
sys.argv = ["{program}", *{["describe"] if program == "models" else ["--burst"]}]
runpy.run_module("{program}", run_name="__main__")
"""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "OPENBLAS_"))
    }
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == ["PASSIVE", str(usable_cores()), "1"]
