"""Networks, activations, losses, optimizers, learning-rate schedules and feature scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.nn.activations import ACTIVATIONS as ACTIVATIONS
    from fastmlp.nn.activations import Activation as Activation
    from fastmlp.nn.losses import LOSSES as LOSSES
    from fastmlp.nn.network import Layer as Layer
    from fastmlp.nn.network import Network as Network
    from fastmlp.nn.optimizers import Optimizer as Optimizer
    from fastmlp.nn.scaling import Scaling as Scaling
    from fastmlp.nn.schedules import Schedule as Schedule

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "activations": ["ACTIVATIONS", "Activation"],
        "losses": ["LOSSES"],
        "network": ["Layer", "Network"],
        "optimizers": ["Optimizer"],
        "scaling": ["Scaling"],
        "schedules": ["Schedule"],
    },
)
