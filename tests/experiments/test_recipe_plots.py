"""Tests of `fastmlp recipes plot`: the comparisons of the reports are defined, and figures show the metrics of the runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.cli import ok, refused
from support.cnn import SHAPE, bars
from support.extract import own_folder, without_pictures  # noqa: F401 - fixtures of all tests
from support.figures import check_legend_beside_panels, check_no_overlap, draw, shown_ticks

from fastmlp.commands.recipes import RUNS, run_command
from fastmlp.experiments.recipes.plot import Comparison, all_comparisons, panels_of, trainings
from fastmlp.experiments.recipes.recipe import all_recipes, find
from fastmlp.files import read_lines
from fastmlp.reports.comparison import Curve, Panel, comparison_figure
from fastmlp.reports.style import own_style

NAN, INF = float("nan"), float("inf")
RECIPES = {
    "cs776-mlp": [f"cs776-mlp-{row}" for row in range(1, 9)],
    "cs776-pooling-random": ["cs776-cnn-4", "cs776-cnn-5", "cs776-cnn-6"],
    "cs776-pooling-he": ["cs776-cnn-7", "cs776-cnn-8", "cs776-cnn-9"],
    "cs776-pooling-xavier": ["cs776-cnn-10", "cs776-cnn-11", "cs776-cnn-12"],
    "cs776-filters-max": ["cs776-cnn-1", "cs776-cnn-4"],
    "cs776-filters-avg": ["cs776-cnn-2", "cs776-cnn-5"],
    "cs776-filters-global": ["cs776-cnn-3", "cs776-cnn-6"],
    "ee5179-activations": ["ee5179-1", "ee5179-2", "ee5179-3"],
    "group7-mlp": [f"group7-mlp-{row}" for row in range(1, 5)],
    "iisc-activations-50-batch-128": [f"iisc-mlp-{row}" for row in range(1, 5)],
    "iisc-activations-50-batch-1024": [f"iisc-mlp-{row}" for row in range(5, 9)],
    "iisc-activations-128": [f"iisc-mlp-{row}" for row in (9, 10, 12, 11)],
    "iisc-depth-relu": [f"iisc-mlp-{row}" for row in (10, 13, 15, 17, 18)],
    "iisc-depth-tanh": [f"iisc-mlp-{row}" for row in (12, 14, 16)],
}


@pytest.fixture(autouse=True)
def in_own_style() -> Iterator[None]:
    with own_style():
        yield


def history(epochs: int, ends: float, rises: float = 8, first: float = 0.1) -> list[dict[str, Any]]:
    """Return the history of a training whose validation accuracy increases from `first` to `ends`."""
    values = [ends - (ends - first) * math.exp(-rises * i / epochs) for i in range(epochs)]
    return [{"epoch": i, "val_loss": 2.5 * (1 - value), "val_accuracy": value} for i, value in enumerate(values, 1)]


def make_run(name: str, rows: list[dict[str, Any]], cnn: list[dict[str, Any]] | None = None, runs: str = "set") -> Path:
    """Write the files of a finished run from which figures are drawn."""
    folder = Path(runs) / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {} if cnn is None else {"extracted": {"cnn": {"history": cnn, "best_epoch": len(cnn) - 1}}}
    (folder / "result.json").write_text(
        json.dumps({"format_version": 1, "stopped": "epochs", "best_epoch": len(rows) - 1, "data": data})
    )
    return folder


@pytest.mark.parametrize("restored", [True, False])
def test_the_best_epoch_is_marked_only_if_its_weights_were_restored(restored: bool, tmp_path: Path) -> None:
    rows = [{"epoch": i, "val_loss": 1.0, "val_accuracy": 0.5} for i in (1, 2)]
    run = make_run("cs776-cnn-10", rows, rows, str(tmp_path))
    result = json.loads((run / "result.json").read_text())
    result["settings"] = result["data"]["extracted"]["settings"] = {"restore_best": restored}
    (run / "result.json").write_text(json.dumps(result))
    found = trainings(Comparison("a", "A", ("cnn", "mlp"), ("loss",), {}), "cs776-cnn-10", tmp_path)
    assert found is not None
    assert {network: one.best_epoch for network, one in found.items()} == dict.fromkeys(found, 1 if restored else None)


def figure_of(name: str, runs: str = "set") -> Figure:
    """Draw the figure of a comparison without writing it to a file."""
    one = all_comparisons()[name]
    found = {name: kept for name in one.curves if (kept := trainings(one, name, Path(runs)))}
    return draw(comparison_figure(panels_of(one, found), one.title))


def curves(figure: Figure, panel: int) -> dict[str, Any]:
    """Return the curves of a panel by label, without the markers of best epochs and published results."""
    lines = figure.axes[panel].get_lines()
    return {str(line.get_label()): line for line in lines if not str(line.get_label()).startswith("_")}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ------------------------------------------------------------------------------------------------ the data


def wrong_with(one: Comparison) -> list[str]:
    """Return the errors in the definition of a comparison, such as unknown recipes or equal labels."""
    found = [f"{name} does not exist" for name in one.curves if name not in all_recipes()]
    recipes = [find(name) for name in one.curves if name in all_recipes()]
    found += [f"{r.name} has no CNN" for r in recipes if "cnn" in one.networks and r.extract is None]
    found += [f"{r.name} has no MLP" for r in recipes if "mlp" in one.networks and r.train is None]
    found += [f"{r.name} is in another report" for r in recipes if not one.title.startswith(r.name.partition("-")[0] + ":")]
    found += [f"unknown name {word}" for word in {*one.networks, *one.figures} - {"cnn", "mlp", "accuracy", "loss"}]
    if len({*one.curves.values()}) < len(one.curves) or len(one.curves) < 2:
        found.append("curves cannot be distinguished")
    return found


def test_what_the_reports_draw_is_there() -> None:
    assert {name: [*one.curves] for name, one in all_comparisons().items()} == RECIPES
    assert [found for one in all_comparisons().values() for found in wrong_with(one)] == []
    for name, one in all_comparisons().items():
        images = "pooling" in name or "filters" in name
        assert (one.networks, one.figures) == ((["cnn", "mlp"], ["accuracy"]) if images else (["mlp"], ["accuracy", "loss"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": {"cs776-cnn-1": "a", "cs776-cnn-99": "b"}}, "cs776-cnn-99 does not exist"),
        ({"curves": {"cs776-cnn-1": "a", "cs776-mlp-1": "b"}}, "cs776-mlp-1 has no CNN"),
        ({"curves": {"cs776-cnn-1": "a", "group7-cnn-1": "b"}, "title": "group7: a"}, "group7-cnn-1 has no MLP"),
        ({"curves": {"cs776-cnn-1": "a", "group7-both": "b"}}, "group7-both is in another report"),
        ({"figures": ["accuracy", "recall"]}, "unknown name recall"),
        ({"networks": ["CNN"]}, "unknown name CNN"),
        ({"curves": {"cs776-cnn-1": "a", "cs776-cnn-2": "a"}}, "curves cannot be distinguished"),
        ({"curves": {"cs776-cnn-1": "a"}}, "curves cannot be distinguished"),
    ],
)
def test_the_check_of_the_data_sees_a_violation(change: dict[str, Any], message: str) -> None:
    assert message in wrong_with(all_comparisons()["cs776-filters-max"]._replace(**change))


@pytest.mark.parametrize("name", all_comparisons())
def test_labels_say_what_the_settings_are(name: str) -> None:
    """An activation, pooling, dropout rate or layer size in the label of a curve is that of its recipe."""
    words = {"max": "max", "average": "avg", "global": "global"}
    for recipe, label in all_comparisons()[name].curves.items():
        settings = find(recipe).extract or find(recipe).train or {}
        sizes = "-".join(map(str, settings["filters"] if "filters" in settings else settings["hidden"]))
        told = {sizes, *settings.get("activation", ["relu"]), *(f"dropout {rate:g}" for rate in settings.get("dropout", []))}
        told |= {f"decay {settings['lr_decay']:g}"} if "lr_decay" in settings else {"plain"}
        told |= {f"L2 {settings['l2']:g}"} if "l2" in settings else set()
        assert {words.get(word, word) for word in label.split(", ")} <= told | set(settings.get("pool", []))
        if ("dropout" in label) != bool(settings.get("dropout")):
            pytest.fail(f"{recipe}: {label}")


# ------------------------------------------------------------------------------------------------ what is drawn


def test_each_network_has_a_panel_with_the_history_of_each_run() -> None:
    makes = {"cs776-cnn-4": (0.9, 0.92), "cs776-cnn-5": (0.88, 0.91), "cs776-cnn-6": (0.6, 0.65)}
    for name, (alone, chained) in makes.items():
        make_run(name, history(40, chained), history(10, alone))
    figure = figure_of("cs776-pooling-random")
    assert [axes.get_title() for axes in figure.axes] == ["the CNN alone", "the MLP on its features"]
    for panel, epochs in enumerate((10, 40)):
        axes, found = figure.axes[panel], curves(figure, panel)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "validation accuracy")
        assert list(found) == ["max", "average", "global"]
        for line, ends in zip(found.values(), makes.values(), strict=True):
            assert line.get_xdata().tolist() == [*range(1, epochs + 1)]
            assert line.get_ydata().tolist() == [row["val_accuracy"] for row in history(epochs, ends[panel])]
            assert (line.get_marker() == "o") == (epochs == 10)
        dots = [line for line in axes.get_lines() if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
        assert [dot.get_xdata().tolist() for dot in dots] == [[epochs - 1]] * 3
        assert [dot.get_color() for dot in dots] == [line.get_color() for line in found.values()]
    assert legend(figure) == ["max", "average", "global", "best epoch", "published epochs"]  # test results are not drawn
    check_no_overlap(figure)
    check_legend_beside_panels(figure)


def test_accuracy_and_loss_stand_beside_each_other() -> None:
    for row in range(1, 9):
        make_run(f"cs776-mlp-{row}", history(200, 0.88 + row / 1000))
    figure = figure_of("cs776-mlp")
    assert [axes.get_ylabel() for axes in figure.axes] == ["validation accuracy", "validation loss"]
    assert [axes.get_title() for axes in figure.axes] == ["", ""]
    for panel, key in enumerate(("val_accuracy", "val_loss")):
        lines = curves(figure, panel)
        assert lines["128, gelu"].get_ydata().tolist() == [row[key] for row in history(200, 0.884)]
        looks = [(line.get_color(), str(line._dash_pattern)) for line in lines.values()]
        assert len({color for color, _ in looks}) == 8
        assert len({dashes for _, dashes in looks}) == 4
        assert {line.get_linewidth() for line in lines.values()} == {1.4}
    check_no_overlap(figure)
    check_legend_beside_panels(figure)


def test_a_curve_keeps_its_colour_when_another_is_missing() -> None:
    for row in (1, 2, 3):
        make_run(f"ee5179-{row}", history(15, 0.9))
    whole = curves(figure_of("ee5179-activations"), 0)
    (Path("set") / "ee5179-2" / "result.json").unlink()
    part = curves(figure_of("ee5179-activations"), 0)
    assert list(part) == ["sigmoid", "relu"]
    assert {label: line.get_color() for label, line in part.items()} == {
        label: line.get_color() for label, line in whole.items() if label != "tanh"
    }


def test_a_recipe_of_a_cnn_alone_can_be_compared() -> None:
    """Recipes without an MLP can be compared: their history is read from cnn.json, and the published accuracy is the CNN's."""
    one = Comparison("a", "iisc: a", ["cnn"], ["accuracy"], {"iisc-cnn-1": "average", "iisc-cnn-2": "max"})
    for name, ends in (("iisc-cnn-1", 0.84), ("iisc-cnn-2", 0.9)):
        folder = Path("set") / name
        folder.mkdir(parents=True)
        (folder / "cnn.json").write_text(
            json.dumps({"format_version": 1, "cnn": {"history": history(20, ends), "best_epoch": 19}})
        )
    found = {name: kept for name in one.curves if (kept := trainings(one, name, Path("set")))}
    figure = draw(comparison_figure(panels_of(one, found), one.title))
    lines = curves(figure, 0)
    assert lines["average"].get_ydata().tolist() == [row["val_accuracy"] for row in history(20, 0.84)]
    marked = [(mark.get_ydata()[0], mark.get_color()) for mark in triangles(figure, 0)]
    assert marked == [(0.8610, lines["average"].get_color()), (0.8903, lines["max"].get_color())]
    make_run("group7-both", history(10, 0.9), history(10, 0.88))
    both = one._replace(networks=["cnn", "mlp"], curves={"group7-both": "both"})
    kept = trainings(both, "group7-both", Path("set"))
    assert kept is not None
    assert kept["cnn"].published == {}
    assert kept["mlp"].curve("a", 0, "accuracy").published == 0.9047
    assert kept["mlp"].curve("a", 0, "loss").published is None


def triangles(figure: Figure, panel: int) -> list[Any]:
    return [line for line in figure.axes[panel].get_lines() if line.get_marker() == "<"]


def test_published_figures_of_the_validation_part_are_marked_at_the_edge() -> None:
    for row in (10, 13, 15, 17, 18):
        make_run(f"iisc-mlp-{row}", history(500, 0.86))
    figure = figure_of("iisc-depth-relu")
    lines = curves(figure, 0)
    published = (0.8735, 0.8786, 0.8811, 0.8781, 0.8868)
    assert [(one.get_ydata()[0], one.get_color()) for one in triangles(figure, 0)] == [
        (value, line.get_color()) for value, line in zip(published, lines.values(), strict=True)
    ]
    assert len(triangles(figure, 1)) == len(published)
    low, high = figure.axes[0].get_ylim()
    assert low < min(published)
    assert max(published) < high
    assert legend(figure)[-2:] == ["best epoch", "published"]
    check_no_overlap(figure)


def test_published_epochs_are_marked() -> None:
    for row in (1, 2):
        make_run(f"cs776-mlp-{row}", history(100, 0.86))
    figure = figure_of("cs776-mlp")
    for panel, column in ((0, 4), (1, 3)):
        lines = [line for line in figure.axes[panel].get_lines() if line.get_marker() == "x"]
        assert [line.get_xydata().tolist() for line in lines] == [
            [[row[0], row[column]] for row in find(f"cs776-mlp-{number}").published["printed"]] for number in (1, 2)
        ]
        assert figure.axes[panel].get_xlim()[1] >= 134
    assert legend(figure)[-1] == "published epochs"


def test_equal_published_figures_can_all_be_seen() -> None:
    curves_of_four = [Curve(str(place), place, history(250, 0.84 + place / 500), 9, 0.85) for place in range(4)]
    figure = draw(comparison_figure([Panel("", metric, curves_of_four) for metric in ("accuracy", "loss")], "t"))
    found = triangles(figure, 0)
    assert [one.get_ydata()[0] for one in found] == [0.85] * 4
    boxes = sorted((one.get_window_extent() for one in found), key=lambda box: box.x0)
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[0].x0 >= figure.axes[0].get_window_extent().x1
    assert boxes[-1].x1 < figure.axes[1].yaxis.label.get_window_extent().x0


def panel_of(figure: str, *histories: list[dict[str, Any]]) -> Any:
    given = [Curve(str(place), place, rows, None, None) for place, rows in enumerate(histories)]
    return draw(comparison_figure([Panel("", figure, given)], "t")).axes[0]


def test_beginnings_that_would_flatten_the_rest_are_cut_off() -> None:
    slow, fast = history(100, 0.9, rises=30), history(100, 0.95, rises=200)
    low, high = panel_of("accuracy", slow, fast).get_ylim()
    assert 0.8 < low < min(row["val_accuracy"] for row in slow[20:])
    assert high > 0.95
    low, high = panel_of("loss", slow, fast).get_ylim()
    assert max(row["val_loss"] for row in slow[20:]) < high < 0.5
    assert low < fast[-1]["val_loss"]


def test_what_flattens_nothing_is_shown_whole_and_so_is_a_bad_network() -> None:
    bad = [{"epoch": i, "val_accuracy": 0.1, "val_loss": 2.3} for i in range(1, 101)]
    good = history(100, 0.92, rises=50)
    assert panel_of("accuracy", bad, good).get_ylim()[0] < 0.1
    gentle = history(100, 0.9, rises=1, first=0.5)
    assert panel_of("accuracy", gentle).get_ylim()[0] < 0.5
    late = [row | {"val_loss": 0.3 + row["epoch"] / 50} for row in good]  # overfitting: the last loss must be visible
    assert panel_of("loss", late).get_ylim()[1] > 2.3
    early = [row | {"val_loss": 0.5 if row["epoch"] == 9 else 2 + row["epoch"] / 1000} for row in good]  # the best loss, too
    assert panel_of("loss", early).get_ylim()[0] < 0.5


def test_scales_of_odd_curves() -> None:
    one = [{"epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0}]
    assert panel_of("accuracy", one).get_ylim() == pytest.approx((0.49, 0.51))
    ticks = [tick.get_loc() for tick in shown_ticks(panel_of("loss", one).xaxis)]
    assert ticks == [1]
    lost = [{"epoch": i, "val_loss": None} for i in (1, 2)]
    panel_of("loss", lost)
    broken = [{"epoch": i, "val_loss": value} for i, value in enumerate([2.0, NAN, 1.0, INF, None], 1)]
    axes = panel_of("loss", broken)
    assert np.isnan(axes.get_lines()[0].get_ydata()).tolist() == [False, True, False, True, True]
    decades = [{"epoch": i, "val_loss": 10.0**-i} for i in range(1, 9)]
    axes = panel_of("loss", decades)
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 1e-8
    assert panel_of("accuracy", [{"epoch": 1, "val_accuracy": 0.0}, {"epoch": 2, "val_accuracy": 1.0}]).get_ylim() == (
        -0.01,
        1.01,
    )


@pytest.mark.parametrize("epochs", [1, 2, 10, 31, 200, 500])
def test_ticks_are_whole_epochs(epochs: int) -> None:
    ticks = [tick.get_loc() for tick in shown_ticks(panel_of("accuracy", history(epochs, 0.9)).xaxis)]
    assert ticks
    assert all(x == round(x) >= 1 for x in ticks)


# ------------------------------------------------------------------------------------------------ runs


def test_only_finished_runs_with_figures_are_drawn() -> None:
    one, runs = all_comparisons()["cs776-filters-max"], Path("set")
    assert trainings(one, "cs776-cnn-1", runs) is None
    folder = make_run("cs776-cnn-1", history(3, 0.9), history(2, 0.8))
    assert list(trainings(one, "cs776-cnn-1", runs) or {}) == ["cnn", "mlp"]
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"stopped": "interrupted"}))
    assert trainings(one, "cs776-cnn-1", runs) is None
    make_run("cs776-cnn-4", history(3, 0.9))  # a run on a data set instead of features
    assert trainings(one, "cs776-cnn-4", runs) is None
    (folder / "result.json").write_text(json.dumps(result))
    rows = [row | {"val_accuracy": None} for row in history(3, 0.9)]  # without a validation split
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trainings(one, "cs776-cnn-1", runs) is None


@pytest.mark.parametrize("text", ['{"epoch": 1}\n{"epo', "[1]\n", "\udcff"])
def test_damaged_metrics_are_named(text: str) -> None:
    folder = make_run("ee5179-1", history(3, 0.9))
    (folder / "metrics.jsonl").write_text(text, errors="surrogateescape")
    line = refused(3, "recipes", "plot", "ee5179-*", "--runs", "set")
    assert line.startswith("set/ee5179-1/metrics.jsonl: damaged (")
    (folder / "metrics.jsonl").unlink()
    assert "cannot read set/ee5179-1/metrics.jsonl" in refused(3, "recipes", "plot", "ee5179-*", "--runs", "set")


@pytest.mark.full
def test_a_run_of_recipes_run_is_drawn(tmp_path: Path) -> None:
    """The figures can be drawn from the files that `recipes run` writes, here for small networks."""
    pixels, labels = bars(200, 0)
    np.savez(tmp_path / "images.npz", x=pixels.reshape(-1, *SHAPE[:2]), y=labels)
    tiny = {"FASTMLP_DATASET": "images.npz", "FASTMLP_EPOCHS": "2", "FASTMLP_BACKEND": "numpy", "FASTMLP_VAL_COUNT": "40"}
    tiny |= {"FASTMLP_FILTERS": "4,6", "FASTMLP_DENSE": "8", "FASTMLP_DEVICE": "cpu"}
    ok("recipes", "run", "cs776-cnn-1", "cs776-mlp-[12]", "-q", **tiny)
    done = ok("recipes", "plot", "cs776-filters-max", "cs776-mlp")
    assert done.stdout == "runs/recipes/cs776-mlp.png\nruns/recipes/cs776-filters-max.png\n"
    figure = figure_of("cs776-filters-max", "runs/recipes")
    result = json.loads(Path("runs/recipes/cs776-cnn-1/result.json").read_text())
    alone, chained = (curves(figure, panel)["16-16-16-16-16"].get_ydata() for panel in (0, 1))
    cnn = result["data"]["extracted"]["cnn"]
    assert alone[cnn["best_epoch"] - 1] == cnn["validation"]["accuracy"]
    assert chained[result["best_epoch"] - 1] == pytest.approx(result["validation"]["accuracy"])
    assert len(alone) == len(chained) == 2


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_draws_what_is_there_and_says_what_is_missing() -> None:
    for name in ("ee5179-1", "ee5179-3", "iisc-mlp-12"):
        make_run(name, history(15, 0.9))
    done = ok("recipes", "plot", "ee5179-*", "iisc-*-tanh", "group7-*", "--runs", "set", "--out", "a/b")
    assert done.stdout == "a/b/ee5179-activations.png\na/b/iisc-depth-tanh.png\n"
    assert done.stderr.splitlines() == [
        "ee5179-activations: plotted without ee5179-2; run `fastmlp recipes run ee5179-2 --out set`",
        "group7-mlp: not plotted, since none of its runs is finished;"
        " run `fastmlp recipes run group7-mlp-1 group7-mlp-2 group7-mlp-3 group7-mlp-4 --out set`",
        "iisc-depth-tanh: plotted without iisc-mlp-14, iisc-mlp-16;"
        " run `fastmlp recipes run iisc-mlp-14 iisc-mlp-16 --out set`",
    ]
    assert sorted(path.name for path in Path("a/b").iterdir()) == ["ee5179-activations.png", "iisc-depth-tanh.png"]
    assert ok("recipes", "plot", "ee5179-*", "--runs", "set", "-q").stderr == ""
    assert Path("set/ee5179-activations.png").read_bytes() == Path("a/b/ee5179-activations.png").read_bytes()
    assert Path("set/ee5179-activations.png").read_bytes()[1:4] == b"PNG"


def test_without_a_pattern_all_are_drawn_and_json_tells_the_files() -> None:
    make_run("iisc-mlp-10", history(15, 0.9))
    done = ok("recipes", "plot", "--runs", "set", "--json", "-q")
    found = {row["name"]: row for row in json.loads(done.stdout)["comparisons"]}
    assert list(found) == [*all_comparisons()]
    assert {name: row["file"] for name, row in found.items() if row["file"]} == {
        name: f"set/{name}.png" for name in ("iisc-activations-128", "iisc-depth-relu")
    }
    for name, row in found.items():
        assert row["title"] == all_comparisons()[name].title
        assert sorted(row["drawn"] + row["missing"]) == sorted(RECIPES[name])
        assert row["drawn"] == (["iisc-mlp-10"] if row["file"] else [])


def test_refusals() -> None:
    line = refused(2, "recipes", "plot", "ee5179-*")
    assert line == (
        "runs/recipes has no finished run of these comparisons; "
        "run recipes first, such as ee5179-1, ee5179-2, ee5179-3 [--runs]"
    )
    assert not Path("runs").exists()
    assert refused(2, "recipes", "plot", "cs777-*").startswith("unknown comparison 'cs777-*'; did you mean 'cs776-mlp'?")
    make_run("ee5179-1", history(15, 0.9))
    Path("file").write_text("")
    for out in ("file", "file/below"):
        assert f"{out} or one of its parents is a file" in refused(2, "recipes", "plot", "--runs", "set", "--out", out)


def test_the_path_of_a_figure_is_one_line() -> None:
    make_run("ee5179-1", history(15, 0.9))
    done = ok("recipes", "plot", "ee5179-*", "--runs", "set", "--out", "a\x1b]0;title\x07\nb")
    assert all(line.startswith(r"a\x1b]0;title\x07\nb/") for line in done.stdout.splitlines()), done.stdout
    assert done.stdout


def test_the_command_of_missing_runs_can_be_pasted() -> None:
    assert run_command(["a"], Path(RUNS)) == "fastmlp recipes run a"
    assert run_command(["a", "b"], Path("my runs")) == "fastmlp recipes run a b --out 'my runs'"


def test_rows_of_a_metrics_file() -> None:
    folder = make_run("ee5179-1", history(3, 0.9))
    assert read_lines(folder / "metrics.jsonl") == history(3, 0.9)


def test_of_long_trainings_a_running_median_is_drawn_over_the_epochs() -> None:
    rng = np.random.default_rng(0)
    values = 0.8 + 0.01 * rng.normal(size=400)
    values[100] = 0.1  # an outlier
    rows = [{"epoch": epoch, "val_accuracy": value} for epoch, value in enumerate(values, start=1)]
    figure = comparison_figure([Panel("", "accuracy", [Curve("a", 0, rows, 7, None)])], "long")
    pale, smooth, best = figure.axes[0].get_lines()[:3]
    assert pale.get_ydata().tolist() == values.tolist()
    found = smooth.get_ydata()
    assert found[100] == np.median(values[95:106])
    assert found[2] == np.median(values[:5])
    assert (found[0], found[-1]) == (values[0], values[-1])
    assert np.std(found) < 0.5 * np.std(values)
    assert best.get_ydata().tolist() == [values[6]]
    assert "each epoch" in [text.get_text() for text in figure.legends[0].get_texts()]
    short = comparison_figure([Panel("", "accuracy", [Curve("a", 0, rows[:100], 7, None)])], "short")
    assert short.axes[0].get_lines()[0].get_ydata().tolist() == values[:100].tolist()
    assert "each epoch" not in [text.get_text() for text in short.legends[0].get_texts()]
