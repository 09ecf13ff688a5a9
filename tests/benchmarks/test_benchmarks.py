"""The tables and the figure of the documentation match the committed results, and benchmarks.epochs writes its files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import epochs, speed_figure, tables
from benchmarks.cases import EPOCHS, Case
from fastmlp.bench.rounds import BenchSettings, run_bench
from fastmlp.nn.network import Network

SPEED, RESULTS = (Path(tables.ROOT) / "docs" / name for name in ("speed.md", "results.md"))


def test_pages_have_the_tables_of_the_committed_results() -> None:
    assert {SPEED, RESULTS} < set(tables.PAGES)
    for page, shown in tables.PAGES.items():
        text = page.read_text()
        assert tables.filled(text, *shown) == text, page
        assert len(set(shown[1])) == text.count("<!-- table ")


def test_a_value_that_no_result_has_is_detected() -> None:
    text, shown = RESULTS.read_text(), tables.PAGES[RESULTS]
    network = json.loads((tables.RESULTS / "recipes.json").read_text())["rows"][0]["mlp"]
    changed = text.replace(f"| {tables.figure_cell(network, 'test', 'accuracy')} |", "| 99.99 |", 1)
    assert changed != text
    assert tables.filled(changed, *shown) == text


def test_a_page_without_its_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="one table 'epochs'"):
        tables.filled("no table here", tables.RESULTS, ("epochs",))


def test_the_speed_figure_shows_the_committed_results() -> None:
    result = json.loads((tables.RESULTS / "epochs.json").read_text())
    times = speed_figure.relative_times(result)
    assert len(times) == len(result["verdicts"]) == 7
    for verdict, one in zip(result["verdicts"], times.values(), strict=True):
        fastest_other = min(value for name, value in one.items() if name != "fastmlp")
        low, high = (verdict["ratio"][key] for key in ("least", "most"))
        assert low <= fastest_other <= high  # a ratio of medians lies within the range of the ratios
    figure = speed_figure.speed_figure(result)
    bars = figure.axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == sorted(value for one in times.values() for value in one.values())
    assert figure.get_size_inches()[1] * figure.dpi <= 900


def test_the_cases_have_their_known_cost() -> None:
    """The cost of an epoch of 48,000 rows in GFLOP is as expected.

    For the first case it is 2 * (784 * 128 * 2 + 128 * 10 * 3) * 48000 operations.
    """
    assert Network(EPOCHS[0].sizes).flops_per_row == 2 * (784 * 128 * 2 + 128 * 10 * 3)
    cost = [round(Network(case.sizes).flops_per_row * 48e3 / 1e9, 1) for case in EPOCHS]
    assert cost == [19.6, 19.6, 118.8, 96.5, 26.6, 19.6, 127.3]


# ------------------------------------------------------------------------------------------------ epochs


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Measure two tiny networks and return the result."""
    cases = (Case((20, 16, 10), 24), Case((20, 10), 8))
    return run_bench(BenchSettings(cases, 64, 2, ("numpy", "numba"), 2, data="synthetic", rest=0.0, triad_bytes=4096))


def test_the_table_of_epochs_has_the_values_of_the_result(measured: dict[str, Any]) -> None:
    head, ruler, first, second, empty, counted, _, note = tables.epochs_table(measured).splitlines()
    assert head.startswith("| network, batch | NumPy | fastmlp numba, 1 thread | fastmlp numba, 2 threads | GFLOP/s |")
    assert head.count("|") == ruler.count("|") == first.count("|")
    assert (first.split(" | ")[0], second.split(" | ")[0], empty) == ("| 20-16-10, 24", "| 20-10, 8", "")
    by_numpy = next(row for row in measured["rows"] if row["backend"] == "numpy")
    assert first.split(" | ")[1] == f"{by_numpy['seconds_per_epoch']:.3f} ({by_numpy['threads']})"
    ratio = measured["verdicts"][0]["ratio"]
    assert f" {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) |" in first
    assert counted.startswith("fastmlp is fastest in ")
    about = measured["machine"]
    assert note.startswith(f"{about['date']}, {about['cores']} cores ({about['processor']}), Python ")
    assert "median of 2 rounds" in note


def test_cases_where_another_library_is_faster_are_reported(measured: dict[str, Any]) -> None:
    lost = copy.deepcopy(measured)
    lost["verdicts"][0] |= {"ratio": {"median": 0.5, "least": 0.4, "most": 0.6}, "text": "we lose: numpy is faster"}
    lost["verdicts"][1] |= {"ratio": {"median": 1.5, "least": 0.4, "most": 1.6}}
    assert "fastmlp is fastest in 1 of 2 rows. At 20-16-10, batch 24, we lose: numpy is faster." in tables.epochs_table(lost)
    assert epochs.lost(lost) == ["20-16-10, batch 24: we lose: numpy is faster"]


def test_a_library_left_out_of_a_case_has_a_dash(measured: dict[str, Any]) -> None:
    result = copy.deepcopy(measured)
    result["rows"] = [row for row in result["rows"] if (row["network"], row["backend"]) != ("20-10", "numpy")]
    result["verdicts"][1]["ratio"] = None
    second = tables.epochs_table(result).splitlines()[3]
    assert second.startswith("| 20-10, 8 | – | 0.")
    assert second.endswith(" | – |")


def test_synthetic_data_are_reported_and_their_results_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(epochs, "EPOCHS", (Case((20, 16, 10), 24),))
    monkeypatch.setattr(epochs, "run_bench", lambda settings, say: run_bench(small(settings), say))
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr("sys.argv", ["epochs", "--rounds", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"measured on synthetic data instead of fashion-mnist.*FASTMLP_DATA"):
        epochs.main()
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "fashion-mnist was not found (set FASTMLP_DATA): measuring on synthetic pixels without writing files"
    assert list(tmp_path.iterdir()) == []


def test_the_script_writes_the_result_and_the_chart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(epochs, "EPOCHS", (Case((20, 16, 10), 24),))
    monkeypatch.setattr(epochs, "DATA", "digits")
    monkeypatch.setattr(epochs, "run_bench", lambda settings, say: run_bench(small(settings), say))
    monkeypatch.setattr(epochs, "lost", lambda result: ["somewhere"])
    monkeypatch.setattr("sys.argv", ["epochs", "--rounds", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="somewhere"):
        epochs.main()
    assert {path.name for path in tmp_path.iterdir()} == {"epochs.json", "epochs.png"}
    assert tables.epochs_table(json.loads((tmp_path / "epochs.json").read_text())).startswith("| network, batch | NumPy |")


def test_an_unusable_folder_is_reported_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "epochs.json").touch()
    monkeypatch.setattr(epochs, "run_bench", lambda settings, say: pytest.fail("the benchmark ran first"))
    monkeypatch.setattr("sys.argv", ["epochs", "--out", str(tmp_path / "epochs.json")])
    with pytest.raises(FileExistsError):
        epochs.main()


def small(settings: BenchSettings) -> BenchSettings:
    return replace(settings, rows=64, backends=("numpy", "numba"), rest=0.0, triad_bytes=4096)


def test_machine_and_versions_are_in_one_dictionary() -> None:
    assert {"date", "cores", "processor", "python", "numpy", "numba", "load"} <= set(epochs.machine())
    assert tables.about(epochs.machine()).count(",") == 4
