"""Tests of the Python interface: pairs of data in any form, defaults, first guesses that get the right line, several seeds."""

from __future__ import annotations

import inspect
import json
import pickle
import threading
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_diabetes
from sklearn.metrics import accuracy_score, r2_score
from support.engines import same_bits
from support.problems import problem

import fastmlp
from fastmlp import Adam, Cosine, Network, ReduceOnPlateau, Settings
from fastmlp.engines.cpu.codegen import observer
from fastmlp.errors import ConfigError, DataError
from fastmlp.training.loop import Loop
from fastmlp.training.progress import COMPILING
from fastmlp.training.result import mean_and_deviation

X, Y = problem(60)
NAMES = np.array(["low", "mid", "high"])
SHORT: dict[str, Any] = {"epochs": 3, "batch_size": 16, "backend": "numpy"}


def trained(x: Any, y: Any, network: Network | None = None, **changes: Any) -> fastmlp.TrainResult:
    return fastmlp.train(network or Network(hidden=(12,)), (x, y), **{**SHORT, **changes})


# ------------------------------------------------------------------------------------------------ pairs


def test_the_example_of_the_readme_in_short() -> None:
    data = fastmlp.load_data("digits").split(validation=0.2, seed=0)
    network = Network(hidden=(32,), dropout=0.2)
    result = fastmlp.train(network, data.train, data.validation, schedule=Cosine(warmup=1), epochs=8, backend="numpy")
    assert network.sizes == (0, 32, 0)  # the description is not changed
    model, test = result.model, data.test
    assert test is not None
    assert model.network.sizes == (784, 32, 10)
    assert (model.scaling.kind, model.image_shape, model.classes) == ("zscore", (28, 28, 1), tuple("0123456789"))
    assert model.score(*test) == accuracy_score(test.y, model.predict(test.x)) > 0.9
    assert model.score(*test) == model.evaluate(*test)["accuracy"]


FORMS: dict[str, tuple[Any, Any]] = {
    "lists": (X.tolist(), Y.tolist()),
    "float64": (X.astype(np.float64), Y.astype(np.int8)),
    "Fortran order": (np.asfortranarray(X), Y[:, None]),
    "big endian": (X.astype(">f8"), Y.astype(">i4")),
    "every second row": (np.repeat(X, 2, axis=0)[::2], np.repeat(Y, 2)[::2]),
    "reversed": (X[::-1][::-1], Y[::-1][::-1]),
    "pandas": (pd.DataFrame(X), pd.Series(Y)),
    "pandas column": (pd.DataFrame(X, columns=list("abcd")), pd.DataFrame({"y": Y})),
    "polars": (pl.DataFrame(X), pl.Series(Y)),
    "images": (X.reshape(60, 2, 2), Y.astype(np.uint64)),
    "objects": (X, Y.astype(object)),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_the_same_data_give_the_same_bits(form: str) -> None:
    wanted, found = trained(X, Y), trained(*FORMS[form])
    assert same_bits(found.state, wanted.state)
    assert found.model.classes == ("0", "1", "2")
    assert np.array_equal(found.model.predict(FORMS[form][0]), wanted.model.predict(X))
    assert found.model.score(*FORMS[form]) == wanted.model.score(X, Y)


LABELS: dict[str, tuple[Any, list[Any]]] = {
    "strings": (NAMES[Y], ["high", "low", "mid"]),
    "objects": (NAMES[Y].astype(object), ["high", "low", "mid"]),
    "pandas strings": (pd.Series(NAMES[Y]), ["high", "low", "mid"]),
    "categories": (pd.Series(NAMES[Y], dtype="category"), ["high", "low", "mid"]),
    "polars strings": (pl.Series(NAMES[Y].tolist()), ["high", "low", "mid"]),
    "integers that do not start at 0": (10 * Y - 10, [-10, 0, 10]),
    "digits as text": (Y.astype(str), ["0", "1", "2"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_predictions_are_labels_of_the_kind_that_was_given(kind: str) -> None:
    y, classes = LABELS[kind]
    result = trained(X, y, epochs=40, optimizer=Adam(0.03))
    predicted = result.model.predict(X)
    assert sorted(set(predicted.tolist())) == classes
    assert result.model.score(X, y) == np.mean(predicted.astype(str) == np.asarray(y).astype(str)) > 0.9
    if predicted.dtype.kind == "U":
        numbers = np.array([result.model.classes.index(label) for label in predicted])
        assert result.model.score(X, numbers) == 1  # numbers of classes are accepted, too


def test_booleans_are_classes() -> None:
    result = trained(X, Y > 0, class_weight={True: 2.0})
    assert result.model.classes == ("False", "True")
    assert result.model.predict(X).dtype == np.bool_
    assert (
        result.model.score(X, Y > 0)
        == result.model.score(X, (Y > 0).astype(int))
        == np.mean(result.model.predict(X) == (Y > 0))
    )
    assert trained(X, Y > 0, Network(hidden=4, loss="squared-error")).model.classes == ()


def test_large_integers_are_classes() -> None:
    y = np.where(Y > 0, 2**63, 5).astype(np.uint64)
    assert set(trained(X, y).model.predict(X).tolist()) <= {5, 2**63}


def test_one_hot_rows_are_class_labels() -> None:
    one, other = trained(X, np.eye(3)[Y]), trained(X, Y)
    assert same_bits(one.state, other.state)
    assert one.model.score(X, np.eye(3)[Y]) == other.model.score(X, Y)
    frame = pd.get_dummies(pd.Series(NAMES[Y]))
    assert trained(X, frame).model.network.loss == "cross-entropy"


def test_a_matrix_of_zeros_and_ones_contains_independent_labels() -> None:
    labels = (X[:, :3] > 0).astype(int)
    assert trained(X, labels).model.network.loss == "binary-cross-entropy"
    assert trained(X, pd.DataFrame(labels)).model.is_multilabel
    for numbers in (labels.astype(float), pd.DataFrame(labels.astype(float)), labels.astype(float).tolist()):
        assert trained(X, numbers).model.network.loss == "squared-error"


def test_many_integers_cause_a_warning() -> None:
    with pytest.warns(UserWarning, match="60 different integers in 60 targets are used as classes"):
        trained(X, np.arange(60) + 5)


FRAMES: dict[str, Any] = {
    "a Boolean column": pd.DataFrame(X).assign(b=Y == 1),
    "nullable dtypes": pd.DataFrame(X).convert_dtypes().assign(b=pd.array(Y, "Int64")),
    "objects": pd.DataFrame(X).astype(object).assign(b=Y),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_with_columns_of_several_dtypes_are_numbers(kind: str) -> None:
    wanted = trained(np.column_stack([X, FRAMES[kind]["b"].astype(float)]), Y)
    assert same_bits(trained(FRAMES[kind], Y).state, wanted.state)


def test_objects_that_are_numbers_are_targets_of_a_regression() -> None:
    y = X[:, 0].astype(float)
    assert same_bits(trained(X, y.astype(object), Network(hidden=4)).state, trained(X, y, Network(hidden=4)).state)


def test_a_data_set_with_class_names_keeps_them(tmp_path: Any) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=NAMES[Y])
    data = fastmlp.load_data(tmp_path / "a.npz").split(validation=0, test=10, seed=3)
    assert data.validation is None
    assert data.test is not None
    assert set(data.train.y) == set(NAMES)
    model = fastmlp.train(Network(), data.train, **SHORT).model
    assert model.classes == ("high", "low", "mid")
    assert set(model.predict(data.test.x)) <= set(NAMES)
    model.save(tmp_path / "m.safetensors")
    assert fastmlp.load(tmp_path / "m.safetensors").score(*data.test) == model.score(*data.test)


def test_a_split_is_a_pair_with_a_length() -> None:
    split = fastmlp.load_data("digits").split(validation=100, test=200)
    x, y = split.train
    assert [None if part is None else len(part) for part in split] == [1497, 100, 200]
    assert x is split.train.x and y is split.train.y
    assert y.dtype == np.int64
    assert "Split(x=(1497, 784) uint8" in repr(split.train)


def test_a_label_of_the_validation_split_must_be_a_class() -> None:
    with pytest.raises(DataError, match="validation targets, row 2: unknown class 'tall'"):
        fastmlp.train(Network(), (X, NAMES[Y]), (X[:3], ["low", "mid", "tall"]), **SHORT)


# ------------------------------------------------------------------------------------------------ regression


def test_regression_targets_are_scaled_by_default(tmp_path: Any) -> None:
    """On scikit-learn's diabetes data, the default gives a positive R2. Without scaling, it is negative."""
    x, y = load_diabetes(return_X_y=True)
    train, test = (x[:342], y[:342]), (x[342:], y[342:])
    result = fastmlp.train(Network(), train)
    model = result.model
    assert (model.network.loss, model.network.sizes) == ("squared-error", (10, 128, 1))
    assert model.predict(test[0]).shape == (100,)
    assert model.score(*test) == pytest.approx(r2_score(test[1], model.predict(test[0])))
    assert model.score(*test) > 0.3
    assert result.history[-1]["loss"] < 0.5  # the loss of targets with variance 1, half the squared error
    unscaled = fastmlp.train(Network(), train, target_scaling=None)
    assert unscaled.model.target_scaling is None
    assert unscaled.model.score(*test) < 0
    model.save(tmp_path / "m.safetensors")
    loaded = fastmlp.load(tmp_path / "m.safetensors")
    assert np.array_equal(loaded.predict(test[0]), model.predict(test[0]))
    assert loaded.evaluate(*test) == model.evaluate(*test)


def test_scaled_targets_equal_targets_that_the_caller_scaled() -> None:
    y = np.stack([1e4 + 300 * X[:, 0], X[:, 1] - 7], axis=1)
    settings = {**SHORT, "dtype": "float64", "epochs": 20}
    scaling = fastmlp.fit_scaling("zscore", y)
    one = fastmlp.train(Network(), (X, y), (X[:9], y[:9]), **settings)
    scaled = scaling.apply(y, np.float64)
    other = fastmlp.train(Network(), (X, scaled), (X[:9], scaled[:9]), **settings, target_scaling=None)
    assert same_bits(one.model.parameters, other.model.parameters)
    assert one.history["val_loss"].tolist() == other.history["val_loss"].tolist()
    np.testing.assert_allclose(one.model.predict(X), scaling.invert(other.model.predict(X)), rtol=1e-12)
    assert one.model.evaluate(X, y)["loss"] == pytest.approx(other.model.evaluate(X, scaled)["loss"], rel=1e-6)
    assert one.model.evaluate(X, y)["mae"] > 10 * other.model.evaluate(X, scaled)["mae"]


@pytest.mark.parametrize(("loss", "output"), [("poisson", None), ("binary-cross-entropy", None), ("squared-error", "sigmoid")])
def test_targets_with_a_meaningful_scale_are_not_scaled(loss: str, output: str | None) -> None:
    result = trained(X, np.abs(np.sin(X[:, :2])), Network(loss=loss, output=output))
    assert result.model.target_scaling is None


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_quantile_loss_predicts_a_quantile(level: float) -> None:
    y = np.random.default_rng(0).normal(1000, 50, 400)
    model = trained(np.zeros((400, 1)), y, Network(hidden=(), loss=f"quantile:{level}"), epochs=30, optimizer=Adam(0.05)).model
    assert model.predict([[0]]) == pytest.approx([np.quantile(y, level)], abs=5)


@pytest.mark.parametrize("loss", ["absolute-error", "huber:0.5", "quantile:0.3"])
def test_losses_of_errors_are_of_scaled_targets(loss: str) -> None:
    y = 1e4 + 300 * X[:, 0]
    model = trained(X, y, Network(hidden=16, loss=loss), epochs=60, optimizer=Adam(0.01)).model
    assert model.target_scaling is not None
    assert model.score(X, y) > 0.8
    assert model.evaluate(X, y)["mae"] > 10 * model.evaluate(X, y)["loss"]


def test_integers_are_numbers_for_a_regression_loss() -> None:
    prices = (100 * X[:, 0]).astype(int)
    assert trained(X, prices, Network(loss="squared-error")).model.classes == ()
    assert trained(X, prices, Network((4, 8, 1), loss="squared-error")).model.predict(X).shape == (60,)


def test_a_matrix_of_labels_is_predicted_as_zeros_and_ones() -> None:
    labels = (X[:, :3] > 0).astype(int)
    network = Network(hidden=16, loss="binary-cross-entropy")
    model = trained(X, labels, network, epochs=60, optimizer=Adam(0.03)).model
    assert model.predict(X).tolist() == (model.predict_proba(X) > 0.5).astype(int).tolist()
    assert model.score(X, labels) == accuracy_score(labels, model.predict(X)) > 0.7


# ------------------------------------------------------------------------------------------------ weights


def test_class_weights_multiply_the_weights_of_rows() -> None:
    y = NAMES[Y]
    factors = {"low": 2.0, "high": 0.5}
    by_row = np.array([factors.get(name, 1.0) for name in y])
    assert same_bits(trained(X, y, class_weight=factors).state, trained(X, y, sample_weight=by_row).state)
    own = np.linspace(1, 2, 60)
    both = trained(X, y, class_weight=factors, sample_weight=own)
    assert same_bits(both.state, trained(X, y, sample_weight=own.astype(np.float32) * by_row).state)
    counts = np.bincount(Y)
    balanced = trained(X, y, class_weight="balanced")
    assert same_bits(balanced.state, trained(X, y, sample_weight=60 / (3 * counts[Y])).state)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"tall": 2.0}, "'tall' is not one of the classes high, low, mid"),
        ("balance", "must be a dict or 'balanced'"),
        ({"low": 0.0}, "the weight of class 'low' must be a positive number, not 0.0"),
        ({"low": "heavy"}, "must be a positive number, not 'heavy'"),
    ],
)
def test_invalid_class_weights_are_rejected(weight: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        trained(X, NAMES[Y], class_weight=weight)


def test_class_weights_need_classes() -> None:
    with pytest.raises(ConfigError, match="class_weight needs class labels"):
        trained(X, X[:, 0], class_weight="balanced")


# ------------------------------------------------------------------------------------------------ settings and defaults


def test_names_of_optimizers_and_schedules_are_accepted() -> None:
    assert Settings(optimizer="adam", schedule="plateau") == Settings(Adam(), ReduceOnPlateau())  # type: ignore[arg-type]
    assert same_bits(trained(X, Y, optimizer="Adam", schedule="Cosine").state, trained(X, Y, schedule=Cosine()).state)


def test_a_schedule_covers_the_epochs_of_the_run() -> None:
    for epochs in (4, 9):
        rates = trained(X, Y, schedule="cosine", epochs=epochs, optimizer=Adam(0.1)).history["lr"]
        assert rates[0] == pytest.approx(0.1, rel=0.3)
        assert rates[-1] == pytest.approx(0.05 * (1 + np.cos(np.pi * (epochs - 1) / epochs)))


def test_reduce_on_plateau_reduces_the_learning_rate() -> None:
    """The learning rate of each epoch follows from the validation losses of the epochs before, as for PyTorch's scheduler."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    x, y = problem(60, noise=0.5)
    schedule = ReduceOnPlateau(factor=0.5, patience=1, threshold=0.01)
    history = fastmlp.train(
        Network((4, 12, 3)),
        (x, y),
        problem(40, 1, 0.5),
        schedule=schedule,
        patience=0,
        optimizer=Adam(0.05),
        **SHORT | {"epochs": 30},
    ).history
    other = torch.optim.SGD([torch.zeros(1)], lr=0.05)
    judge = torch.optim.lr_scheduler.ReduceLROnPlateau(other, factor=0.5, patience=1, threshold=0.01)
    rates = []
    for row in history:
        rates.append(other.param_groups[0]["lr"])
        judge.step(row["val_loss"])
    assert history["lr"].tolist() == pytest.approx(rates)
    assert rates[-1] < 0.05


def test_early_stopping_is_on_by_default_with_a_validation_split() -> None:
    x, y = problem(60, noise=0.6)
    given: dict[str, Any] = {**SHORT, "epochs": 60, "optimizer": Adam(0.05)}
    stopped = fastmlp.train(Network((4, 30, 3)), (x, y), problem(50, 1, 0.6), **given)
    assert (stopped.stopped, len(stopped.history) - stopped.best_epoch) == ("patience", 10)
    assert fastmlp.train(Network((4, 30, 3)), (x, y), problem(50, 1, 0.6), **given, patience=0).stopped == "epochs"
    assert fastmlp.train(Network((4, 30, 3)), (x, y), **given).stopped == "epochs"


GUESSES: list[tuple[Any, str]] = [
    (
        lambda: Network(784, 128, 10),
        r"Network\(\(784, 128, 10\)\); or give only the hidden layers, as in Network\(hidden=\(128,\)",
    ),
    (lambda: Settings(lr=0.1), r"write optimizer=fastmlp\.Adam\(learning_rate=0\.001\)"),
    (lambda: Settings(epoch=3), "did you mean 'epochs'"),
    (lambda: trained(X, Y, lr=0.1), r"write optimizer=fastmlp\.Adam\(learning_rate"),
    (lambda: trained(X, Y, dropout=0.1), r"write fastmlp\.Network\(hidden=\(128,\), dropout=\.\.\.\)"),
    (lambda: trained(X, Y, validation_data=(X, Y)), "the pair as the third argument"),
    (lambda: trained(X, Y, verbose=1), "write progress=True"),
    (lambda: trained(X, Y, optimizer="adm"), "did you mean 'adam'"),
    (lambda: trained(X, Y, optimizer=0.1), "optimizer must be a name or an optimizer"),
    (lambda: fastmlp.train(Network(), X, Y), r"must be a pair \(x, y\), not ndarray; write fastmlp\.train\(network, \(x, y\)"),
    (lambda: fastmlp.train(Network(), X, Y, X), r"write fastmlp\.train\(network, \(x, y\)"),
    (lambda: fastmlp.train(Network(), (X, Y), X), "the validation data must be a pair"),
    (lambda: fastmlp.train(Network(), X.tolist(), Y), r"must be a pair \(x, y\), not list"),
    (
        lambda: fastmlp.train_many([(Network(), {"lr": 1})], (X, Y)),
        r"jobs\[0\]: fastmlp.Settings has no argument 'lr'; write optimizer",
    ),
    (lambda: fastmlp.train(Network(), (X, Y), seeds=()), "seeds is empty"),
    (lambda: fastmlp.train(Network(), fastmlp.load_data("digits").split().train, classes=NAMES), "leave classes out"),
    (lambda: Network(hidden=(4,)).parameters, r"sizes of network \?x4x\? are not known; `fastmlp\.train` sets them"),
    (lambda: Network((4, 3, 2), hidden=(5,)), "not both"),
    (lambda: Network(hidden=(4, 0)), r"hidden must be whole numbers of at least 1, not \(4, 0\)"),
    (lambda: Adam(lr=0.1), "fastmlp.Adam has no argument 'lr'; write learning_rate"),  # type: ignore[call-arg]
    (lambda: Adam(learning_rat=0.1), "did you mean 'learning_rate'"),  # type: ignore[call-arg]
    (lambda: Cosine(T_max=5), "write nothing: the schedule covers the epochs"),  # type: ignore[call-arg]
    (lambda: Network(hidden_layer_sizes=5), r"write hidden=\(128,\)"),  # type: ignore[call-arg]
    (lambda: Network(droput=0.5), "did you mean 'dropout'"),  # type: ignore[call-arg]
    (lambda: trained(X, Y, optimizer=Adam), r"write Adam\(\)"),
    (lambda: trained(X, Y, schedule=Cosine), r"write Cosine\(\)"),
    (lambda: trained(X, Y, scaling=True), "scaling must be 'none', .*, None or a fastmlp.Scaling, not True"),
    (lambda: trained(X, Y, settings={"epochs": 2}), r"settings must be a fastmlp\.Settings"),
    (lambda: trained(X, Y, batch_size=None), "batch_size must be at least 1 and a whole number, not None"),
    (lambda: trained(X, Y, max_time="1h"), "max_time must be a positive number of seconds, not '1h'"),
    (lambda: trained(X, Y, dtype="complex64"), "dtype must be 'float32' or 'float64'"),
    (lambda: trained(X, Y, seeds=4), r"write seeds=range\(4\)"),
    (lambda: trained(X, Y, callbacks=print), "callbacks must be a list of functions"),
    (lambda: trained(X, Y, classes=["a", "a", "b"]), "classes must be a list of distinct names"),
    (lambda: trained(X, X[:, :2], classes=["a", "b"]), "classes are for class labels, but the targets are numbers"),
    (lambda: trained(X, Y, shift=2, image_shape=(2, 2)), "shift must be smaller than the images"),
    (lambda: fastmlp.train(trained(X, Y).model, (X, Y)), r"the first argument must be a fastmlp\.Network"),
    (lambda: fastmlp.train_many([Network()], (X, Y)), r"jobs\[0\]: a job must be a pair"),
    (lambda: fastmlp.SGD(nesterov=True), "nesterov needs a positive momentum"),
]


@pytest.mark.parametrize(("guess", "message"), GUESSES)
def test_first_guesses_get_the_right_line(guess: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        guess()
    assert "\n" not in str(caught.value)


def test_help_and_editors_show_the_settings() -> None:
    parameters = inspect.signature(fastmlp.train).parameters
    assert {"network", "train", "validation", "scaling", "seeds", "optimizer", "epochs", "seed"} <= parameters.keys()
    assert not {"misplaced", "changes"} & parameters.keys()
    assert parameters["epochs"].default == Settings().epochs


def test_all_errors_are_public() -> None:
    for name in ("ConfigError", "DataError", "DivergedError", "Diverged", "Interrupted", "UnavailableError", "ThresholdError"):
        assert issubclass(getattr(fastmlp, name), BaseException)


# ------------------------------------------------------------------------------------------------ results


def test_the_history_is_a_list_with_columns() -> None:
    history = fastmlp.train(Network(), (X, Y), (X, Y), **SHORT).history
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["val_loss"].tolist() == [row["val_loss"] for row in history]
    frame = pd.DataFrame(history)
    assert list(frame.columns) == list(history.columns)
    assert frame["loss"].tolist() == history["loss"].tolist() == pl.DataFrame(history)["loss"].to_list()
    assert isinstance(history[1:], fastmlp.History)
    assert len(history[1:]) == 2
    assert json.loads(json.dumps(history)) == history
    assert "loss" in history and "acc" not in history and history[0] in history
    assert np.isnan(trained(X, Y).history["val_loss"]).all()
    with pytest.raises(KeyError, match="no column 'acc'; columns: epoch, rows, loss"):
        history["acc"]
    header, *rows = repr(history).splitlines()
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"]
    assert len(rows) == 3
    long = fastmlp.History([{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 100)])
    assert len(repr(long).splitlines()) == 12
    assert long._repr_html_().count("<tr>") == 12
    assert repr(fastmlp.History()) == ""


def test_a_result_can_be_plotted() -> None:
    result = fastmlp.train(Network(), (X, Y), (X, Y), **SHORT)
    figure = result.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert result.metrics == {key: result.history[result.best_epoch - 1][key] for key in result.metrics}


def test_errors_can_be_sent_to_another_process() -> None:
    """Process pools send exceptions as pickles."""
    with pytest.raises(fastmlp.Diverged) as caught:
        trained(X, X[:, 0], optimizer=fastmlp.SGD(1e6), target_scaling=None, epochs=9)
    other = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - written here
    assert (type(other), str(other), other.settings) == (fastmlp.Diverged, str(caught.value), caught.value.settings)
    result = trained(X, Y)
    stopped = pickle.loads(pickle.dumps(fastmlp.Interrupted(result, 2)))  # noqa: S301 - written here
    assert (stopped.signal, len(stopped.training.history)) == (2, 3)
    many = pickle.loads(pickle.dumps(fastmlp.ManyInterrupted([None, result], 15)))  # noqa: S301 - written here
    assert (many.signal, many.results[0], str(many)) == (15, None, "training interrupted, 1 of 2 models started")


def test_the_parameters_of_a_model_are_read_only() -> None:
    model = trained(X, Y).model
    with pytest.raises(ValueError, match="read-only"):
        model.parameters[0] = 1


# ------------------------------------------------------------------------------------------------ several seeds


@pytest.mark.parametrize("progress", [True, False])
def test_the_compilation_is_shown_with_the_progress(
    progress: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels are compiled before the training, also before that of several seeds."""
    compile_kernels = Loop.compile

    def compile_anew(loop: Loop) -> None:
        observer.notify()
        compile_kernels(loop)

    monkeypatch.setattr(Loop, "compile", compile_anew)
    for seeds in (None, (1, 2)):
        monkeypatch.setattr(observer, "announced", threading.Event())
        fastmlp.train(Network(), (X, Y), seeds=seeds, progress=progress, **SHORT)
        assert capsys.readouterr().err.count(f"{COMPILING}\n") == progress


def test_several_seeds_are_trained_side_by_side() -> None:
    given: dict[str, Any] = {**SHORT, "epochs": 4}
    results = fastmlp.train(Network(), (X, NAMES[Y]), (X, NAMES[Y]), seeds=range(3), **given)
    singles = [fastmlp.train(Network(), (X, NAMES[Y]), (X, NAMES[Y]), seed=seed, **given) for seed in range(3)]
    assert [same_bits(one.state, other.state) for one, other in zip(results, singles, strict=True)] == [True] * 3
    losses = [result.metrics["val_loss"] for result in singles]
    assert results.summary["val_loss"] == pytest.approx((np.mean(losses), np.std(losses, ddof=1)))
    assert results.best is results[int(np.argmin(losses))]
    scores = [result.model.score(X, NAMES[Y]) for result in singles]
    assert results.score(X, NAMES[Y]) == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    assert (len(results), results.seeds) == (3, (0, 1, 2))


def test_the_band_shows_mean_and_standard_deviation() -> None:
    results = fastmlp.train(Network(), (X, Y), (X, Y), seeds=(3, 7, 9), **SHORT)
    loss, accuracy = results.plot().axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    lines = {line.get_label(): line for line in loss.lines}
    wanted = np.mean([result.history["loss"] for result in results], axis=0)
    np.testing.assert_allclose(lines["training, mean"].get_ydata(), wanted)
    band = loss.collections[0].get_paths()[0].vertices
    deviation = np.std([result.history["loss"] for result in results], axis=0, ddof=1)
    assert band[:, 1].max() == pytest.approx((wanted + deviation).max())
    assert len(loss.lines) == 2 * (3 + 1)


def test_one_seed_has_no_deviation() -> None:
    assert fastmlp.train(Network(), (X, Y), seeds=[5], **SHORT).summary["loss"][1] == 0
    assert mean_and_deviation([{"a": 1.0}]) == {"a": (1.0, 0.0)}


def test_a_seed_that_diverges_is_named() -> None:
    with pytest.raises(fastmlp.Diverged, match="seed 4: the "):
        fastmlp.train(Network((4, 12, 12, 3)), (X, Y), seeds=[4], optimizer=fastmlp.SGD(1e12), scaling=None, **SHORT)
