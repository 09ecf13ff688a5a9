"""Tests of `Network`: layers, parameter layout, initial weights and invalid settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from fastmlp.errors import ConfigError
from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.losses import LOSSES
from fastmlp.nn.network import ALIASES, INITIALIZERS, Layer, Network
from fastmlp.nn.philox import generator


def test_layers_follow_the_settings() -> None:
    network = Network((5, 4, 3, 2), activation=("leaky-relu:0.25", "elu"), dropout=(0.5, 0.0))
    assert network.layers == (
        Layer(5, 4, "leaky-relu", 0.25, 0.5),
        Layer(4, 3, "elu", 1.0, 0.0),
        Layer(3, 2, "linear", 0.0, 0.0),
    )


def test_a_network_without_hidden_layers_is_one_linear_layer() -> None:
    network = Network((5, 3), activation="gelu", dropout=0.5)
    assert network.layers == (Layer(5, 3, "linear", 0.0, 0.0),)
    assert network.activation == network.dropout == ()
    assert network.parameters == 18


def test_one_setting_for_all_layers_or_one_per_layer() -> None:
    assert Network((5, 4, 3, 2), "tanh", 0.25) == Network([5, 4, 3, 2], ["tanh", "tanh"], [0.25, 0.25])
    assert Network((5, 4, 3, 2), "tanh") != Network((5, 4, 3, 2), ("tanh", "relu"))
    assert hash(Network((5, 4, 2))) == hash(Network([5, 4, 2]))


def test_parameters_flops_and_label() -> None:
    network = Network((784, 500, 250, 10))
    assert network.parameters == 784 * 500 + 500 + 500 * 250 + 250 + 250 * 10 + 10
    # forward pass and weight gradient of each layer, and input gradient of all layers but the first
    assert network.flops_per_row == 2 * (2 * 784 * 500 + 3 * 500 * 250 + 3 * 250 * 10)
    assert network.label == "784x500x250x10"


def test_parameter_vector_is_row_major_w_then_b_of_each_layer() -> None:
    network = Network((3, 2, 4))
    vector = np.arange(network.parameters, dtype=np.float64)
    (w0, b0), (w1, b1) = network.views(vector)
    assert w0.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert b0.tolist() == [6, 7]
    assert w1.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert b1.tolist() == [16, 17, 18, 19]


def test_views_cover_the_vector_exactly_once() -> None:
    network = Network((7, 1, 5, 3))
    vector = np.zeros(network.parameters)
    for w, b in network.views(vector):
        assert w.base is not None
        np.add(w, 1, out=w)
        np.add(b, 1, out=b)
    assert (vector == 1).all()


def test_each_loss_has_a_default_output() -> None:
    assert Network((2, 2)).output == "softmax"
    assert Network((2, 2), loss="squared-error").output == "linear"
    for loss, outputs in LOSSES.items():
        for output in outputs:
            assert Network((2, 2), loss=loss, output=output).output == output


def test_a_loss_keeps_the_text_of_its_parameter() -> None:
    network = Network((2, 2), loss="HuberLoss:1.50")
    assert (network.loss, network.loss_name, network.loss_parameter, network.output) == ("huber:1.50", "huber", 1.5, "linear")
    other = dataclasses.replace(network, loss="pinball")
    assert (other.loss, other.loss_name, other.loss_parameter) == ("quantile", "quantile", 0.5)
    assert (Network((2, 2)).loss_name, Network((2, 2)).loss_parameter) == ("cross-entropy", 0.0)


def test_every_activation_is_valid() -> None:
    for name in ACTIVATIONS:
        assert Network((2, 2, 2), activation=name).layers[0].activation == name


def test_network_is_frozen_and_works_with_replace() -> None:
    network = Network((4, 3, 2), dropout=0.5, init="he:0.3", label_smoothing=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.l2 = 1.0  # type: ignore[misc]
    other = dataclasses.replace(network, l2=0.5)
    assert other.l2 == 0.5
    assert dataclasses.replace(other, l2=0.0) == network
    assert Network(**dataclasses.asdict(network)) == network


# ------------------------------------------------------------------------------------------------ initial weights

WIDE = (300, 200, 100)
SCALES = {
    "xavier-uniform": lambda i, o: math.sqrt(6 / (i + o)),
    "xavier-normal": lambda i, o: math.sqrt(2 / (i + o)),
    "he-uniform": lambda i, o: math.sqrt(6 / i),
    "he-normal": lambda i, o: math.sqrt(2 / i),
    "pytorch": lambda i, o: 1 / math.sqrt(i),
    "uniform": lambda i, o: 0.05,
    "normal": lambda i, o: 0.05,
}


@pytest.mark.parametrize("random_biases", [False, True])
@pytest.mark.parametrize("init", [*INITIALIZERS, "uniform:0.3", "normal:0.3", "he-normal:0.3", "pytorch:0.3"])
def test_initial_weights_have_their_distribution(init: str, random_biases: bool) -> None:
    """In each layer, the weights have the expected mean and standard deviation (within five standard errors) and range."""
    network = Network(WIDE, init=init, random_biases=random_biases)
    name, _, given = network.init.partition(":")
    for w, b in network.views(network.initial_parameters(3, np.float64)):
        scale = float(given) if given else SCALES[name](*w.shape)
        uniform = "uniform" in name or name == "pytorch"
        deviation = scale / math.sqrt(3) if uniform else scale
        assert abs(w.mean()) < 5 * deviation / math.sqrt(w.size)
        # the relative standard error of a standard deviation is sqrt((kurtosis - 1) / (4 n))
        assert w.std() == pytest.approx(deviation, rel=5 * math.sqrt((0.8 if uniform else 2.0) / 4 / w.size))
        if uniform:
            assert 0.99 * scale < np.abs(w).max() <= scale
        else:
            assert 3.5 * scale < np.abs(w).max() < 6 * scale
        if name != "pytorch" and not random_biases:
            assert (b == 0).all()
            continue
        assert abs(b.mean()) < 5 * deviation / math.sqrt(b.size)
        assert b.std() == pytest.approx(deviation, rel=5 * math.sqrt((0.8 if uniform else 2.0) / 4 / b.size))
        if uniform:
            assert 0.9 * scale < np.abs(b).max() <= scale


def test_pytorch_initialization_has_the_range_of_torch() -> None:
    torch = pytest.importorskip("torch")
    network = Network((50, 4000, 3), init="torch")
    assert network.init == "pytorch"
    for w, b in network.views(network.initial_parameters(0)):
        theirs = torch.nn.Linear(*w.shape)
        for ours, parameter in ((w, theirs.weight), (b, theirs.bias)):
            if ours.size > 1000:
                assert np.abs(ours).max() == pytest.approx(float(parameter.detach().abs().max()), rel=0.02)


@pytest.mark.parametrize("random_biases", [False, True])
@pytest.mark.parametrize("init", INITIALIZERS)
def test_initial_weights_are_the_first_numbers_of_their_stream(init: str, random_biases: bool) -> None:
    """The weights of a layer are drawn first, so random biases do not change them."""
    network = Network((5, 4, 3), init=init, random_biases=random_biases)
    for index, (w, b) in enumerate(network.views(network.initial_parameters(7, np.float64))):
        draw, scale = generator(7, "weights", index), SCALES[init](*w.shape)
        values = draw.normal(0, scale, 1000) if "normal" in init else draw.uniform(-scale, scale, 1000)
        assert np.array_equal(w.ravel(), values[: w.size])
        assert np.array_equal(b, values[w.size :][: b.size] if random_biases or init == "pytorch" else np.zeros(b.size))


def test_every_initializer_is_tested() -> None:
    assert set(INITIALIZERS) == set(SCALES)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_give_equal_networks(alias: str, name: str) -> None:
    assert Network((4, 3, 2), init=alias) == Network((4, 3, 2), init=name)
    assert Network((4, 3, 2), init=f"{alias}:0.5").init == f"{name}:0.5"


def test_default_initialization_is_he_normal() -> None:
    assert Network((4, 3, 2)).init == "he-normal"
    assert {alias: ALIASES[alias] for alias in ("he", "xavier", "glorot")} == {
        "he": "he-normal",
        "xavier": "xavier-uniform",
        "glorot": "xavier-uniform",
    }


def test_initial_parameters_depend_on_the_seed_only() -> None:
    network = Network(WIDE)
    first = network.initial_parameters(0)
    assert first.dtype == np.float32
    assert np.array_equal(first, network.initial_parameters(0))
    weights = first != 0
    assert (first[weights] != network.initial_parameters(1)[weights]).mean() > 0.99
    assert np.array_equal(network.initial_parameters(0, np.float64).astype(np.float32), first)


def test_initial_weights_of_layers_are_independent() -> None:
    network = Network((120, 120, 120, 120), init="normal")
    ws = [w.ravel() for w, _ in network.views(network.initial_parameters(0, np.float64))]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(ws[i], ws[j])[0, 1]) < 5 / math.sqrt(ws[i].size)


def test_initial_weights_do_not_depend_on_the_width_of_other_layers() -> None:
    """Each layer has its own random numbers, so the width of a layer does not change the weights of other layers."""
    one, other = Network((6, 5, 4, 3), init="normal"), Network((6, 9, 4, 3), init="normal")
    last = [network.views(network.initial_parameters(0))[2][0] for network in (one, other)]
    assert np.array_equal(*last)


def test_scale_zero_gives_zeros() -> None:
    assert (Network((4, 3, 2), init="uniform:0").initial_parameters(0) == 0).all()


# ------------------------------------------------------------------------------------------------ bad input

BAD: list[tuple[dict[str, Any], str]] = [
    ({"sizes": ()}, "sizes must be"),
    ({"sizes": (4,)}, "sizes must be"),
    ({"sizes": (4, 0, 2)}, "sizes must be"),
    ({"sizes": (4, -3, 2)}, "sizes must be"),
    ({"sizes": (4, 2.5, 2)}, "sizes must be"),
    ({"sizes": "432"}, "sizes must be"),
    ({"activation": "rleu"}, "did you mean 'relu'"),
    ({"activation": ("relu", "tanh")}, "activation has 2 values, but there are 1"),
    ({"activation": "relu:0.5"}, "has no parameter"),
    ({"activation": "elu:nan"}, "not a finite number"),
    ({"dropout": 1.0}, "dropout must be"),
    ({"dropout": -0.1}, "dropout must be"),
    ({"dropout": math.nan}, "dropout must be"),
    ({"dropout": (0.1, 0.2)}, "dropout has 2 values, but there are 1"),
    ({"dropout": ()}, "dropout has 0 values"),
    ({"loss": "cross-entrpy"}, "did you mean 'cross-entropy'"),
    ({"loss": "cross-entropy", "output": "sigmoid"}, "needs output softmax"),
    ({"loss": "squared-error", "output": "tanh"}, "unknown output 'tanh'"),
    ({"loss": "huber", "output": "sigmoid"}, "loss 'huber' needs output linear"),
    ({"loss": "huber:0"}, r"must be a float32 number in the range \(0, inf\)"),
    ({"loss": "quantile:1"}, r"must be a float32 number in the range \(0, 1\)"),
    ({"loss": "cross-entropy:1"}, "has no parameter"),
    ({"loss": 3}, "loss must be a string"),
    ({"l1": -0.1}, "l1 must be"),
    ({"l1": math.nan}, "l1 must be"),
    ({"l2": -0.1}, "l2 must be"),
    ({"l2": math.inf}, "l2 must be"),
    ({"label_smoothing": 1.0}, "label_smoothing must be"),
    ({"label_smoothing": -0.1}, "label_smoothing must be"),
    ({"label_smoothing": math.nan}, "label_smoothing must be"),
    ({"random_biases": "yes"}, "random_biases must be True or False, not 'yes'"),
    ({"init": "xaver"}, "did you mean 'xavier'"),
    ({"init": "normal:x"}, "not a finite number"),
    ({"init": "normal:-1"}, "must not be negative"),
    ({"init": "normal:inf"}, "not a finite number"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Network(**{"sizes": (4, 3, 2), **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [np.float32(0.25), np.float64(0.25)])
def test_numpy_scalars_are_accepted(rate: Any) -> None:
    network = Network(np.array([4, 3, 2]), dropout=rate)  # type: ignore[arg-type]
    assert network == Network((4, 3, 2), dropout=0.25)
