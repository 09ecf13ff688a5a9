"""Custom activations: checks of the functions, the hash of their code, the registry, model files and pickles."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import pytest
from sklearn.base import clone
from support import activations as support
from support.activations import BINARY, MISH, SOFTSIGN
from support.cli import refused
from support.engines import same_bits
from support.problems import problem

import fastmlp
from fastmlp.errors import ConfigError, DataError
from fastmlp.models.file import FILE_NAME
from fastmlp.models.model import Model, load
from fastmlp.nn.activations import ACTIVATIONS, Activation, UnknownActivation, formulas_of, register
from fastmlp.nn.custom import digest, snapshot
from fastmlp.nn.network import Network


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Activation]]:
    """Run every test with an empty registry of custom activations, as in a new process."""
    empty: dict[str, Activation] = {}
    monkeypatch.setattr("fastmlp.nn.activations.CUSTOM", empty)
    yield empty


def new_process(registry: dict[str, Activation]) -> None:
    """Forget the registered activations, as a new process would."""
    registry.clear()


def identity(z: Any, a: Any) -> Any:
    return z


def one(z: Any, y: Any, a: Any) -> Any:
    return 1.0


# ------------------------------------------------------------------------------------------------ networks


def test_a_network_holds_names() -> None:
    network = Network((4, 3, 3, 3, 2), activation=[MISH, "relu", SOFTSIGN])
    assert network.activation == ("mish", "relu", "softsign")
    assert network == Network((4, 3, 3, 3, 2), activation=["Mish", "ReLU", "softsign"])
    assert Network((4, 3, 2), activation=MISH).activation == ("mish",)
    assert hash(network) == hash(pickle.loads(pickle.dumps(network)))  # noqa: S301
    assert b"mish_value" not in pickle.dumps(network)


def test_the_parameter_has_a_default() -> None:
    register(SOFTSIGN)
    layers = Network((4, 3, 3, 2), activation=["softsign", "softsign:0.25"]).layers
    assert [(layer.activation, layer.parameter) for layer in layers[:-1]] == [("softsign", 1.0), ("softsign", 0.25)]
    with pytest.raises(ConfigError, match="has no parameter"):
        Network((4, 3, 3, 2), activation=[MISH, "mish:0.5"])


def test_an_activation_that_is_not_registered_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"unknown activation 'mish'.*Valid: linear, .*passed to Network or load"):
        Network((4, 3, 2), activation="mish")
    for wrong in (math.tanh, 3, [identity], [None]):
        with pytest.raises(ConfigError, match=r"activation must be a name or a fastmlp\.Activation"):
            Network((4, 3, 2), activation=wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the registry


def test_the_same_functions_may_be_registered_again() -> None:
    def define() -> Activation:
        return Activation("mine", lambda z, a: z * 2, lambda z, y, a: 2)

    first, again = define(), define()
    assert first.value is not again.value
    assert register(first) == register(again) == register(first) == "mine"


@pytest.mark.parametrize("name", ["relu", "ReLU", "leaky_relu", "swish", "identity"])
def test_names_of_built_in_activations_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"built-in activation.*choose another name"):
        Network((4, 3, 2), activation=Activation(name, identity, one))


@pytest.mark.parametrize("name", ["mish", "Mish", "mi_sh"])
def test_other_functions_of_the_same_name_are_refused(name: str) -> None:
    Network((4, 3, 2), activation=MISH)
    with pytest.raises(ConfigError, match=r"already registered.*choose another name"):
        Network((4, 3, 2), activation=Activation(name, identity, one))
    with pytest.raises(ConfigError, match="already registered"):
        register(Activation(name, support.mish_value, support.mish_slope, 0.5))
    assert formulas_of("mish") is MISH.formulas


# ------------------------------------------------------------------------------------------------ refusals


def recursive(z: Any, a: Any) -> Any:
    return z if z > 0 else recursive(z + 1, a)


def asserting(z: Any, a: Any) -> Any:
    assert z < 1e9
    return z


TABLE = np.ones(3)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "value is not callable": ({"value": 3}, "value must be a Python function"),
    "slope is not callable": ({"slope": None}, "slope must be a Python function"),
    "a built-in function": ({"value": math.tanh}, "value must be a Python function"),
    "too few arguments": ({"value": lambda z: z}, r"value is called with 2 arguments, but has the arguments \(z\)"),
    "too many arguments": ({"slope": lambda z, y, a, b: 1}, r"slope is called with 3 arguments.*\(z, y, a, b\)"),
    "variadic": ({"slope": lambda *z: 1}, "slope: <lambda> has keyword-only or variadic arguments"),
    "a tuple": ({"value": lambda z, a: (z, a)}, "value must return a number, but returned.*tuple"),
    "an array": ({"value": lambda z, a: np.where(z > 0, z, a)}, "value must return a number, but returned array.*ndarray"),
    "complex": ({"value": lambda z, a: z + 1j}, "value must return a number.*complex"),
    "no result": ({"slope": lambda z, y, a: None}, "slope must return a number, but returned None"),
    "an unknown global": ({"value": lambda z, a: nonsense(z)}, "value raised NameError.*nonsense"),  # type: ignore[name-defined] # noqa: F821
    "an array as a global": ({"value": lambda z, a: z * TABLE[0]}, "value uses TABLE, a value of type ndarray"),
    "another module": ({"value": lambda z, a: support.softplus(z)}, "value uses support, the module support.activations"),
    "recursion": ({"value": recursive}, "recursive calls itself"),
    "an exception": ({"value": asserting}, "asserting contains raise or assert"),
    "a wrong slope": ({"slope": lambda z, y, a: 1.03}, r"slope\(-3\.1\) is 1\.03, but the derivative of value is about 1;"),
    "a wrong sign": ({"slope": lambda z, y, a: -1.0}, "slope.*is -1"),
    "an invalid default": ({"default": "0.5"}, "default must be a finite number or None, not '0.5'"),
    "an infinite default": ({"default": math.inf}, "default must be a finite number"),
    **{f"name {name!r}": ({"name": name}, "the name of an activation") for name in ("", "a:b", "a,b", "2nd", "a b", None)},
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_activations_are_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        Activation(**{"name": "mine", "value": identity, "slope": one, **changes})
    assert case.startswith("name") or "activation 'mine': " in str(caught.value)


def test_formulas_of_built_in_activations_are_accepted() -> None:
    """The check of the slope also accepts kinks, small slopes and slopes with float32 constants."""
    for name, (value, slope, default) in ACTIVATIONS.items():
        for parameter in {default, None, 0.3, 1.5}:
            Activation(f"my-{name}", value, slope, parameter)


KINKS: dict[str, tuple[Any, Any]] = {
    "hard tanh": (lambda z, a: min(max(z, -1.21), 1.21), lambda z, y, a: 1 if -1.21 < z < 1.21 else 0),
    "kinks at all points": (lambda z, a: abs(z - 0.43) + abs(z + 0.52), lambda z, y, a: np.sign(z - 0.43) + np.sign(z + 0.52)),
    "fast wave": (lambda z, a: math.sin(100 * z), lambda z, y, a: 100 * math.cos(100 * z)),
    "rounded to float32": (lambda z, a: np.float32(z) * np.float32(z), lambda z, y, a: np.float32(2) * np.float32(z)),
    "undefined for z < 0": (lambda z, a: math.sqrt(z), lambda z, y, a: 0.5 / y),
}


@pytest.mark.parametrize("case", KINKS)
def test_unusual_slopes_are_accepted(case: str) -> None:
    Activation("mine", *KINKS[case])


def test_a_slope_that_is_not_the_derivative_must_be_declared() -> None:
    Activation("mine", *BINARY.formulas[:2], differentiable=False)
    with pytest.raises(ConfigError, match=r"set differentiable=False"):
        Activation("mine", *BINARY.formulas[:2])


def test_functions_are_copied_with_the_values_that_they_use() -> None:
    """A later change of a global or a closure variable has no effect, and functions that Numba compiled are unwrapped."""
    factor = 2.0

    def value(z: Any, a: Any) -> Any:
        return scaled(z)

    scaled = numba.njit(lambda z: factor * z)
    mine = Activation("mine", numba.njit(value), lambda z, y, a: factor)
    before = mine.digest
    factor = 3.0
    assert (mine.formulas.value(1.0, 0.0), mine.formulas.slope(1.0, 2.0, 0.0)) == (2.0, 2.0)
    assert Activation("mine", value, lambda z, y, a: factor).digest != before


# ------------------------------------------------------------------------------------------------ the hash


def define(text: str, **names: Any) -> Any:
    """Return the function f that a text defines, with the given globals."""
    place: dict[str, Any] = {"math": math, "np": np, "__name__": __name__, **names}
    code = compile(text, "<cell>", "exec")
    FunctionType(code, place)()
    return place["f"]


def hash_of(text: str, **names: Any) -> str:
    return digest(snapshot(define(text, **names), "f", 2))


PLAIN = "def f(z, a):\n    return g(z) + k * 1.0"
HELPER = "def f(z):\n    return z"
EQUAL: dict[str, str] = {
    "again": PLAIN,
    "another line": "\n\n" + PLAIN,
    "a docstring": 'def f(z, a):\n    "Doc."\n    return g(z) + k * 1.0',
    "annotations": "def f(z: float, a: int) -> float:\n    return g(z) + k * 1.0",
    "other names of arguments": "def f(x, alpha):\n    return g(x) + k * 1.0",
}
DIFFERENT: dict[str, tuple[str, dict[str, Any]]] = {
    "an operation": ("def f(z, a):\n    return g(z) - k * 1.0", {}),
    "a constant": (PLAIN.replace("1.0", "1.5"), {}),
    "the type of a constant": (PLAIN.replace("1.0", "1"), {}),
    "a boolean": (PLAIN.replace("1.0", "True"), {}),
    "the other argument": (PLAIN.replace("g(z)", "g(a)"), {}),
    "a global": (PLAIN, {"k": 3.0}),
    "the type of a global": (PLAIN, {"k": 2}),
    "the dtype of a global": (PLAIN, {"k": np.float32(2)}),
    "a tuple": (PLAIN, {"k": (2.0,)}),
    "a helper": (PLAIN, {"g": define("def f(z):\n    return -z")}),
    "a constant of a helper": (PLAIN, {"g": define("def f(z):\n    return z * 1.0")}),
    "a default of a helper": (PLAIN, {"g": define("def f(z, b=1):\n    return z")}),
    "another default of a helper": (PLAIN, {"g": define("def f(z, b=2):\n    return z")}),
    "a helper of a helper": (PLAIN, {"g": define("def f(z):\n    return h(z)", h=define("def f(z):\n    return z"))}),
    "another helper of a helper": (PLAIN, {"g": define("def f(z):\n    return h(z)", h=define("def f(z):\n    return -z"))}),
    "a function of math": (PLAIN, {"g": math.exp}),
    "another function of math": (PLAIN, {"g": math.tanh}),
    "a method of a module": (PLAIN.replace("g(z)", "math.exp(z)"), {}),
    "another method of a module": (PLAIN.replace("g(z)", "math.tanh(z)"), {}),
    "an inner function": ("def f(z, a):\n    return (lambda x: x + 1.0)(z) + k", {}),
    "another inner function": ("def f(z, a):\n    return (lambda x: x + 2.0)(z) + k", {}),
    "an inner function with another global": ("def f(z, a):\n    return (lambda x: x + 2.0 * g(z))(z) + k", {}),
    "zero": (PLAIN.replace("1.0", "0.0"), {}),
    "minus zero": (PLAIN, {"k": -0.0}),
    "plus zero": (PLAIN, {"k": 0.0}),
}


def test_the_hash_covers_everything_that_affects_results() -> None:
    names = {"g": define(HELPER), "k": 2.0}
    base = hash_of(PLAIN, **names)
    assert {case: hash_of(text, **names) for case, text in EQUAL.items()} == dict.fromkeys(EQUAL, base)
    found = {case: hash_of(text, **{**names, **changes}) for case, (text, changes) in DIFFERENT.items()}
    hashes = [base, *found.values()]
    assert len(set(hashes)) == len(hashes), [case for case in found if hashes.count(found[case]) > 1]


def test_the_hash_covers_closures_and_defaults() -> None:
    def made(value: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return (lambda z, a: value), (lambda z, a, b=value: b)

    for number in (0, 1):
        values = [1, 1.0, True, 2, np.float32(1), (1, 2), (1, 2.0)]
        assert len({digest(snapshot(made(value)[number], "f", 2)) for value in values}) == len(values)
    assert MISH.digest == Activation("mish", support.mish_value, support.mish_slope).digest
    assert MISH.digest != Activation("mish", support.mish_value, support.mish_slope, 0.0).digest


def test_a_function_factory_may_be_nested() -> None:
    def shifted(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda z, a: f(z, a) + 1

    twice = Activation("mine", shifted(shifted(identity)), one)
    assert twice.formulas.value(1.0, 0.0) == 3
    assert twice.digest != Activation("mine", shifted(identity), one).digest


# ------------------------------------------------------------------------------------------------ files


def make_model(activation: Any = MISH) -> Model:
    network = Network((4, 5, 3, 2), activation=[activation, "tanh"])
    return Model(network, network.initial_parameters(0), classes=("no", "yes"), backend="numpy")


X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def test_a_file_with_an_unknown_activation_is_refused(tmp_path: Path, registry: dict[str, Activation]) -> None:
    make_model().save(tmp_path / FILE_NAME)
    new_process(registry)
    with pytest.raises(DataError, match=r"the activation 'mish', which is not built in.*load\(path, activations=\{'mish': "):
        load(tmp_path)
    message = refused(3, "predict", tmp_path / FILE_NAME, tmp_path / "x.csv")
    assert "'mish'" in message
    assert "activations={'mish': " in message
    with pytest.raises(ConfigError, match="unknown activation 'mish'"):
        Network((4, 5, 2), activation="mish")


@pytest.mark.parametrize("given", [MISH, (support.mish_value, support.mish_slope)])
def test_a_file_is_loaded_with_its_activation(given: Any, tmp_path: Path, registry: dict[str, Activation]) -> None:
    model = make_model()
    z = model.forward(X)
    model.save(tmp_path / "a")
    assert b"mish_value" not in (tmp_path / "a").read_bytes()
    new_process(registry)
    loaded = fastmlp.load(tmp_path / "a", activations={"mish": given}, backend="numpy")
    assert loaded.network == model.network
    assert same_bits(loaded.forward(X), z)
    assert load(tmp_path / "a").network == model.network  # now it is registered


def test_a_parameter_is_saved(tmp_path: Path, registry: dict[str, Activation]) -> None:
    register(SOFTSIGN)
    make_model("softsign:0.25").save(tmp_path / "a")
    new_process(registry)
    assert load(tmp_path / "a", activations={"softsign": SOFTSIGN}).network.layers[0].parameter == 0.25


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        ({"mish": support.mish_value}, "must be an Activation or a pair"),
        ({"mish": (support.mish_value,)}, "must be an Activation or a pair"),
        ({"mish": SOFTSIGN}, "another name, 'softsign'"),
        ({"mish": (support.mish_value, one)}, "slope"),
        ({"relu": (identity, one)}, "built-in activation"),
        ({"mish": (identity, one)}, "already registered"),
    ],
)
def test_invalid_activations_of_a_file(activations: Any, message: str, tmp_path: Path) -> None:
    make_model().save(tmp_path / "a")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "a", activations=activations)


# ------------------------------------------------------------------------------------------------ pickles


@pytest.mark.parametrize("backend", ["numpy", "numba", "torch"])
def test_an_unpickled_network_needs_its_activation(backend: str, registry: dict[str, Activation]) -> None:
    network = make_model().network
    assert network.layers[0].activation == "mish"  # also pickled
    content = pickle.dumps(network)
    new_process(registry)
    unpickled = pickle.loads(content)  # noqa: S301
    model = Model(unpickled, network.initial_parameters(0), classes=("no", "yes"), backend=backend)
    with pytest.raises(UnknownActivation, match=r"unknown activation 'mish'.*must first be passed to Network or load"):
        model.forward(X)
    register(MISH)
    assert model.forward(X).shape == (9, 2)


def test_an_unpickled_activation_is_registered(registry: dict[str, Activation]) -> None:
    content = pickle.dumps(MISH)
    for make_copy in (lambda: pickle.loads(content), lambda: copy.copy(MISH), lambda: copy.deepcopy(MISH)):  # noqa: S301
        again = make_copy()
        assert (again.name, again.digest) == ("mish", MISH.digest)
        assert registry.keys() == {"mish"}
        new_process(registry)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_estimators(solver: str, registry: dict[str, Activation]) -> None:
    x, y = problem()
    how: dict[str, Any] = {"hidden_layer_sizes": (8, 6), "solver": solver, "max_iter": 5, "tol": 0, "backend": "numpy"}
    with pytest.warns(Warning, match="converge|maximum|limit"):
        fitted = clone(fastmlp.MLPClassifier(activation=[MISH, "relu"], random_state=0, **how)).fit(x, y)
    content, predicted = pickle.dumps(fitted), fitted.predict(x)
    new_process(registry)
    by_name = pickle.loads(content)  # noqa: S301
    assert np.array_equal(by_name.predict(x), predicted)
    by_name.set_params(activation=["mish", "relu"])
    new_process(registry)
    with pytest.raises(ConfigError, match="unknown activation 'mish'"):
        by_name.predict(x)
