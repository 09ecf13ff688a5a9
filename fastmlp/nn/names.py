"""Lookup of names of activations, losses and other registry entries, in different spellings and with common synonyms.

Case, hyphens, underscores and spaces are ignored, so "ReLU", "leaky_relu" and PyTorch's "LeakyReLU" are accepted.
`canonical_name` returns the name as spelled in the registry, which is stored in networks, model files and labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastmlp.errors import ConfigError, unknown_name

# For each setting: registry name -> synonyms that other libraries and papers use.
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "activation": {"silu": ("swish",), "sigmoid": ("logistic",), "linear": ("identity",), "tanh": ("hyperbolic-tangent",)},
    "loss": {
        "binary-cross-entropy": ("bce", "bce-loss", "bce-with-logits-loss"),
        "cross-entropy": (
            "ce",
            "sparse-categorical-cross-entropy",
            "cross-entropy-loss",
            "categorical-cross-entropy",
            "softmax-cross-entropy",
            "log-loss",
        ),
        "squared-error": ("mse", "mse-loss", "mean-squared-error", "squared-loss"),
        "absolute-error": ("mae", "mean-absolute-error", "l1", "l1-loss", "absolute-loss"),
        "huber": ("huber-loss",),
        "quantile": ("quantile-loss", "pinball", "pinball-loss"),
    },
    "output": {"sigmoid": ("logistic",), "linear": ("identity", "none")},
    "init": {
        "random": ("default", "pytorch", "torch"),  # of `extract`, whose default is that of PyTorch
        "pytorch": ("torch",),
        "xavier": ("glorot",),
        "he": ("kaiming",),
        "he-normal": ("kaiming-normal",),
        "he-uniform": ("kaiming-uniform",),
    },
    "optimizer": {"nesterov": ("nag",)},
    "schedule": {
        "constant": ("constant-lr", "none"),
        "exponential": ("exponential-lr", "exponential-decay"),
        "step": ("step-lr", "step-decay"),
        "cosine": ("cosine-annealing", "cosine-annealing-lr", "cosine-decay"),
    },
    "scaling": {"zscore": ("standard", "standard-scaler", "standardize")},
    "monitor": {"loss": ("val-loss",), "accuracy": ("val-accuracy", "val-acc", "acc")},
    "backend": {"torch": ("pytorch",), "cuda": ("gpu",), "numba": ("cpu",)},
    "dtype": {"float32": ("f32", "fp32", "single"), "float64": ("f64", "fp64", "double")},
    "precision": {"float32": ("f32", "fp32"), "bf16": ("bfloat16",), "tf32": ("tensorfloat32",)},
    "pool": {"avg": ("average", "mean"), "max": ("maximum",), "global": ("global-average", "gap")},
    "regularize": {
        "batch": ("batch-norm", "batch-normalization", "bn"),
        "dropout2d": ("spatial-dropout", "spatial-dropout-2d", "channel-dropout"),
    },
}


def normalize(name: str) -> str:
    """Convert a name to lower case, and remove hyphens, underscores and spaces.

    >>> normalize("Leaky_ReLU"), normalize("cross-entropy")
    ('leakyrelu', 'crossentropy')
    """
    return "".join(character for character in name.lower() if character not in "-_ ")


def canonical_name(kind: str, given: Any, registry: Iterable[str]) -> str:
    """Return the registry name that a given name refers to; the given name may be spelled differently, or be a synonym.

    Parameters
    ----------
    kind : setting that the name is a value of, such as "activation"; selects the synonyms in `SYNONYMS`, and appears in the
        error message
    given : the name given by the user
    registry : valid names; they take precedence over synonyms

    Raises
    ------
    ConfigError : the name is unknown, or is not a string

    Examples
    --------
    >>> canonical_name("activation", "Leaky_ReLU", ["relu", "leaky-relu"]), canonical_name("activation", "swish", ["silu"])
    ('leaky-relu', 'silu')
    """
    names = list(registry)
    if given in names:
        return str(given)
    if not isinstance(given, str):
        raise ConfigError(f"{kind} must be a string, not {given!r}; valid: {', '.join(names)}")
    synonyms = {normalize(other): name for name, others in SYNONYMS.get(kind, {}).items() for other in others if name in names}
    spellings = synonyms | {normalize(name): name for name in names}
    if (name := spellings.get(normalize(given))) is None:
        raise ConfigError(unknown_name(kind, given, names))
    return name
