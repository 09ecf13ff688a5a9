"""Kernels are compiled and linked for GPUs that are not installed: none spills registers, and all are cached."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cuda_build
from fastmlp.engines.cuda import compiler
from fastmlp.engines.cuda.engine import SHAPE, TILES
from fastmlp.engines.cuda.kernels.programs import KERNELS, apply_spec
from fastmlp.files import read_json
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.optimizers import RULES

pytestmark = pytest.mark.full

COMPILER = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")


@COMPILER
def test_the_plain_kernels_fit_every_capability(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    rows = list(cuda_build.build_all(cuda_build.kernels([("relu, sgd", cuda_build.PLAIN)]), cuda_build.CAPABILITIES))
    assert {row.kernel for row in rows} == set(KERNELS)
    assert len(rows) == 8 * len(cuda_build.CAPABILITIES)  # 2 kernels in 2 designs, and 4 of benchmarks
    assert [str(row) for row in rows if row.built.spilled] == []
    assert all(0 < row.built.registers <= 255 and row.built.cubin.startswith(b"\x7fELF") for row in rows)
    # With the cached kernels, a GPU of the same compute capability needs no compiler.
    monkeypatch.setattr(compiler, "lowered", None)
    compiler.compiled.cache_clear()
    for row in rows:
        shape = SHAPE if row.shape == "shape" else TILES["float32"]
        kind = apply_spec(cuda_build.PLAIN) if row.kernel == "apply" else cuda_build.PLAIN
        assert compiler.compiled(row.kernel, kind, shape, row.capability) == row.built


@COMPILER
def test_every_option_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels with all activations spill no registers on compute capability 7.5.

    `python -m benchmarks.cuda_build` checks all options on all compute capabilities.
    """
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    everything = [kind for kind in cuda_build.kinds() if kind[1].precision == "float32"][1:]
    rows = cuda_build.build_all(cuda_build.kernels(everything[:1]), ((7, 5),))
    assert [str(row) for row in rows if row.built.spilled] == []


@COMPILER
def test_a_loss_with_a_parameter_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The parameter is an argument of the kernels for training and for evaluation, and they spill no registers."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    kinds = [kind for kind in cuda_build.kinds() if kind[1].loss == "huber"]
    requests = [one for one in cuda_build.kernels(kinds) if one.name in ("train", "apply") and one.shape == SHAPE]
    rows = list(cuda_build.build_all(requests, ((7, 5),)))
    assert [row.kernel for row in rows] == ["train", "apply"]
    assert [str(row) for row in rows if row.built.spilled] == []


@COMPILER
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_tensor_cores_fit(precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tensor-core kernels are built only for compute capability 8.0 and later, and spill no registers."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    kind = (precision, cuda_build.PLAIN._replace(precision=precision))
    rows = list(cuda_build.build_all(cuda_build.kernels([kind]), ((7, 5), (8, 0))))
    assert {row.capability for row in rows if row.kind == precision} == {(8, 0)}
    assert [str(row) for row in rows if row.built.spilled] == []


@COMPILER
def test_functions_of_one_code_are_one_if_all_values_around_them_are() -> None:
    """Numba compiles a function once per combination of closure values; 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    from fastmlp.engines.cuda.kernels.device import device

    def made(value: Any) -> Any:
        def function(x: Any) -> Any:
            return value

        return device(function)

    values: list[Any] = [1, 1.0, True, 0.0, -0.0, (1, 2), (1, 2.0), "1", None]
    assert len({id(made(value)) for value in values}) == len(values)
    assert all(made(value) is made(value) for value in values)


def test_the_table_of_all_options_on_all_capabilities_has_no_spill() -> None:
    """No kernel in the committed table spills registers; computing the table takes ten minutes."""
    table = read_json(cuda_build.RESULTS)
    if table["sources"] != compiler.sources():
        pytest.skip(f"{cuda_build.RESULTS} is out of date: python -m benchmarks.cuda_build --out {cuda_build.RESULTS}")
    found = {(row["capability"], row["kernel"], row["by"], row["kind"]) for row in table["rows"]}
    assert found == {
        (cuda_build.format_capability(capability), one.name, type(one.shape).__name__.lower(), one.label)
        for one in cuda_build.kernels(cuda_build.kinds())
        for capability in cuda_build.fitting(one.kind, cuda_build.CAPABILITIES)
    }
    assert [row for row in table["rows"] if row["spilled"] or not 0 < row["registers"] <= 255] == []


def test_a_kernel_that_spills_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = compiler.Built(b"", "train", (), 256, 255, 8192, 16)
    row = cuda_build.Row("train", "relu, sgd", "shape", (9, 0), built)
    monkeypatch.setattr(cuda_build, "build_all", lambda *given: iter([row]))
    monkeypatch.setattr("sys.argv", ["cuda_build", "--out", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit, match="a kernel spills registers"):
        cuda_build.main()
    assert "9.0 train by shape (relu, sgd): 255 registers, 8192 bytes shared, 16 bytes spilled" in capsys.readouterr().out
    kept = {"capability": "9.0", "kernel": "train", "by": "shape", "kind": "relu, sgd"}
    assert read_json(tmp_path / "found.json")["rows"] == [kept | {"registers": 255, "shared": 8192, "spilled": 16}]


def test_all_options_are_built() -> None:
    kinds = [kind for _, kind in cuda_build.kinds()]
    assert {rule for kind in kinds for rule in [kind.rule]} == set(RULES)
    assert {(kind.loss, kind.output) for kind in kinds} == {(loss, output) for loss in LOSSES for output in LOSSES[loss]}
    assert any(set(kind.activations) == set(ACTIVATIONS) for kind in kinds)
    for flag in ("pixels", "classes", "drops", "penalised", "clips"):
        assert {getattr(kind, flag) for kind in kinds} == {True, False}, flag
