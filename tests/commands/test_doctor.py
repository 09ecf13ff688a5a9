"""Tests of `fastmlp doctor`: the checks succeed on this machine, and report simulated faults."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.engines import need_backend

from fastmlp.commands import doctor
from fastmlp.commands.doctor import BROKEN, NOTE, OK, Check
from fastmlp.engines import Version
from fastmlp.errors import UnavailableError


def versions(**installed: str) -> Version:
    """Return a function that looks up versions in a simulated installation; `installed` has underscores for hyphens."""
    return lambda package: installed.get(package.replace("-", "_"))


SOUND = {name.replace("-", "_"): "1.0" for name in doctor.CORE} | {"numpy": "2.4.6"}


def test_this_machine_is_sound(tmp_path: Path, numba_backend: str) -> None:
    checks = doctor.examine(str(tmp_path))
    assert not doctor.is_broken(checks)
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    expected = {"fastmlp", "python", "numpy", "numba", "processor", "cores", "threads", "kernel cache", "data folder"}
    assert expected | {"data digits", "numba-cuda", "self-test"} <= found.keys()
    assert found["data folder"].value == str(tmp_path)
    assert found["data mnist"] == Check("data mnist", "missing", NOTE, "fastmlp data fetch mnist")
    assert found["threads"].value.split()[0].isdigit()


def test_the_table_has_a_line_per_check() -> None:
    table = doctor.as_table([Check("a", "1"), Check("longer", "2", BROKEN, "mend it")])
    assert table.splitlines() == ["ok      a       1", "broken  longer  2 (mend it)"]


def test_one_broken_check_is_enough() -> None:
    assert not doctor.is_broken([Check("a", "1"), Check("b", "2", NOTE)])
    assert doctor.is_broken([Check("a", "1"), Check("b", "2", BROKEN)])


def test_missing_packages() -> None:
    found = {check.name: check for check in doctor.check_versions(versions(**SOUND))}
    assert found["numba"].state == OK
    assert found["torch"].state == NOTE  # an optional package
    assert "fastmlp[cnn]" in found["torch"].remedy
    del_numba = {name: version for name, version in SOUND.items() if name != "numba"}
    found = {check.name: check for check in doctor.check_versions(versions(**del_numba))}
    assert (found["numba"].state, found["numba"].remedy) == (BROKEN, "pip install numba")


# ------------------------------------------------------------------------------------------------ CUDA and torch


def test_cuda_is_not_installed() -> None:
    (check,) = doctor.check_cuda(versions(numpy="2.5.0"), Card)
    assert check.state == NOTE
    assert "pip install 'fastmlp[cuda13]'" in check.remedy


class Card:
    """A fake CUDA device with the attributes that the check reads."""

    name, capability, blocks = "A card", (9, 0), 132


@pytest.mark.parametrize(("numpy", "state"), [("2.5.0", NOTE), ("2.5.5", NOTE), ("3.0.0rc1", NOTE), ("2.4.6", OK)])
def test_cuda_is_made_for_numpy_before_2_5(numpy: str, state: str) -> None:
    first, device = doctor.check_cuda(versions(numba_cuda="0.30.4", numpy=numpy), Card)
    assert first.state == state
    assert ("pip install 'numpy<2.5'" in first.remedy) == (state == NOTE)
    assert (device.value, device.state) == ("A card, compute capability 9.0, 132 multiprocessors", OK)


def test_no_cuda_device_is_a_note() -> None:
    def missing() -> Card:
        raise UnavailableError("no driver")

    _, device = doctor.check_cuda(versions(numba_cuda="0.30.4", numpy="2.4.6"), missing)
    assert (device.value, device.state, device.remedy) == ("no driver", NOTE, "check the driver with nvidia-smi")


def test_torchvision_of_the_same_build() -> None:
    for torch, torchvision in (("2.13.0", "0.28.0"), ("2.13.0+cpu", "0.28.0+cpu")):
        (check,) = doctor.check_torchvision(versions(torch=torch, torchvision=torchvision))
        assert check.state == OK
    assert list(doctor.check_torchvision(versions(torch="2.13.0+cpu"))) == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "state"),
    [("raise RuntimeError('operator torchvision::nms does not exist')", BROKEN), ("", OK)],
)
def test_torchvision_of_another_build(module: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text(module)  # the new process imports this file
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (check,) = doctor.check_torchvision(versions(torch="2.13.0+cpu", torchvision="0.28.0"))
    assert check.state == state
    if state == BROKEN:
        assert "is incompatible with torch 2.13.0+cpu: RuntimeError: operator torchvision::nms does not exist" in check.value
        assert check.remedy.endswith("--index-url https://download.pytorch.org/whl/cpu")


# ------------------------------------------------------------------------------------------------ the machine


def test_processor() -> None:
    check = doctor.check_processor()
    assert check.state == OK
    if sys.platform == "linux" and "x86_64" in check.value:
        flags = Path("/proc/cpuinfo").read_text().split()
        assert ("avx2" in check.value.split()) == ("avx2" in flags)


def test_a_cache_that_does_not_exist_yet(tmp_path: Path) -> None:
    check = doctor.check_cache(tmp_path / "new" / "kernels")
    assert (check.state, check.value) == (OK, f"{tmp_path / 'new' / 'kernels'}: created at first use")


def test_a_private_cache(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "a.kernel").write_bytes(bytes(1_500_000))
    check = doctor.check_cache(tmp_path)
    assert (check.state, check.value) == (OK, f"{tmp_path}: 1 files, 1.5 MB, private")


def test_a_cache_that_others_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    check = doctor.check_cache(tmp_path)
    assert check.state == NOTE
    assert "is writable by other users" in check.value
    assert "FASTMLP_CACHE_DIR" in check.remedy


def test_a_file_in_place_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "kernels").touch()
    assert doctor.check_cache(tmp_path / "kernels").state == NOTE
    assert doctor.check_cache(tmp_path / "kernels" / "inner").state == NOTE


# ------------------------------------------------------------------------------------------------ self-test


def test_the_engines_agree(numba_backend: str) -> None:
    assert doctor.self_test().state == OK


def test_the_self_test_detects_another_loss() -> None:
    losses = doctor.tiny_losses(need_backend("numpy"))
    assert doctor.compare_losses(losses, losses).state == OK
    assert doctor.compare_losses(losses, [*losses[:-1], losses[-1] * 1.001]).state == BROKEN
    assert doctor.compare_losses(losses, [*losses[:-1], float("nan")]).state == BROKEN
