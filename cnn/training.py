"""Training a network: the loop, its checkpoints, and going on from one.

Every epoch seeds itself from the run's seed and its number: the order of rows, dropout, augmentation. So an epoch is the same
whether the epochs before it ran in this process or in one that was interrupted, and on a CPU, with the same number of threads,
a resumed training ends in the same bits as an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .description import check_least, check_name
from .errors import DescriptionError, DivergedError, FileError, MissingError
from .files import read_versioned, write_versioned
from .images import Augmentation, Images

OPTIMIZERS = ("adam", "adamw", "sgd")
MONITORS = ("loss", "accuracy")
SCHEDULES = ("constant", "step", "cosine")
EVALUATED = 1024  # images at once where no gradient is needed
CHECKPOINT_VERSION = 1  # format version of checkpoints
CHECKPOINT_KEYS = ("optimizer_name", "network", "optimizer", "history", "best_epoch", "best_score", "best_network")
RETRAIN = "delete it to train from the start"

Row = dict[str, Any]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Parameters
    ----------
    optimizer : a name of `OPTIMIZERS`, as in torch.optim
    lr, momentum, weight_decay : learning rate; momentum of sgd; decay of all weights, decoupled for adamw
    schedule : a name of `SCHEDULES`: "step" multiplies the rate by `lr_gamma` every `lr_step` epochs, "cosine" takes it to 0 at
        the last step (Loshchilov & Hutter 2017, without restarts)
    batch_size, epochs : rows of an update, passes over the training part
    monitor : a name of `MONITORS`: the figure of the validation part whose best epoch is kept
    patience : epochs without a better monitored figure after which training ends; None for no end
    label_smoothing : share of each target spread over all classes
    augmentation : of training images
    seed : for the order of rows, dropout and augmentation
    autocast : whether convolutions and products compute in bfloat16
    compiled : whether torch.compile is used

    Raises
    ------
    DescriptionError : a value that cannot be
    """

    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    lr_gamma: float = 0.5
    lr_step: int = 10
    batch_size: int = 64
    epochs: int = 10
    monitor: str = "loss"
    patience: int | None = None
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    autocast: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("monitor", self.monitor, MONITORS)
        check_least(self, 1, "batch_size", "epochs", "lr_step", *(["patience"] if self.patience is not None else []))
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise DescriptionError(f"lr must be a positive number, not {self.lr}", settings=("lr",))
        for name in ("weight_decay", "momentum", "label_smoothing"):
            value, below = getattr(self, name), math.inf if name == "weight_decay" else 1
            if not 0 <= value < below:
                message = f"{name} must be at least 0 and {'finite' if below == math.inf else 'below 1'}, not {value}"
                raise DescriptionError(message, settings=(name,))

    def rate(self, epoch: float) -> float:
        """Learning rate after so many epochs, from 0."""
        if self.schedule == "step":
            return self.lr * self.lr_gamma ** (int(epoch) // self.lr_step)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))
        return self.lr


class Part(NamedTuple):
    """Images with the numbers of their classes, (n,)."""

    images: Images
    labels: Labels


class Trained(NamedTuple):
    """history : a row per epoch; best_epoch : whose weights the network has; stopped : "epochs", "patience" or "signal"."""

    history: list[Row]
    best_epoch: int
    stopped: str


@dataclass
class Watch:
    """What the training tells, and asks.

    batch : (epoch, rows done, rows in all, mean loss, accuracy, rows per second), after each batch
    epoch : the row of the history, after each epoch
    checkpoint : bytes to keep, after each epoch; the newest replaces those before
    stop : whether to end now, asked after each batch; the epoch under way is given up
    """

    batch: Callable[[int, int, int, float, float, float], None] = lambda *figures: None
    epoch: Callable[[Row], None] = lambda row: None
    checkpoint: Callable[[bytes], None] | None = None
    stop: Callable[[], bool] = lambda: False


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" takes CUDA where it works.

    Raises
    ------
    MissingError : the device is not there
    DescriptionError : no such kind of device
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DescriptionError(f"device must be auto, cpu or cuda, not {name!r}", settings=("device",)) from None
    if device.type == "cuda" and not cuda:
        raise MissingError(
            f"device {name!r} needs a CUDA device, and none is usable; set device to cpu, or run `fastmlp doctor`",
            settings=("device",),
        )
    return device


class Trainer:
    """One training of a network; `run` reads top to bottom.

    Raises DivergedError, from `run`, when the loss is no number; the network then has the best weights so far.
    """

    def __init__(
        self, network: nn.Module, train: Part, validation: Part | None, settings: Settings, watch: Watch | None = None
    ) -> None:
        self.network = network.to(train.images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train, self.validation, self.settings, self.watch = train, validation, settings, watch or Watch()
        self.optimizer = make_optimizer(network, settings)
        self.step = torch.compile(network) if settings.compiled else network
        self.transform = settings.augmentation.transform(*train.images.image_shape[:2])
        self.history: list[Row] = []
        self.best_epoch, self.best_score, self.best = 0, -math.inf, copy.deepcopy(network.state_dict())

    def resume(self, data: bytes, name: str) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        FileError : the checkpoint is corrupt, has another format version, or belongs to another network or optimizer
        """
        kind, keys = "a checkpoint of a training", CHECKPOINT_KEYS
        state = read_versioned(data, name, version=CHECKPOINT_VERSION, keys=keys, kind=kind, remedy=RETRAIN)
        given, optimizer = state["optimizer_name"], self.settings.optimizer
        if given != optimizer:
            message = f"{name}: checkpoint of optimizer {given}, not {optimizer}; {RETRAIN}, or set optimizer to {given}"
            raise FileError(message, settings=("optimizer",))
        try:
            self.network.load_state_dict(state["best_network"])  # to check it
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileError(f"{name}: checkpoint of another network ({reason}); {RETRAIN}") from None
        self.history, self.best_epoch, self.best_score = state["history"], state["best_epoch"], state["best_score"]
        self.best = state["best_network"]

    def checkpoint(self) -> bytes:
        """Return the state of the training as bytes, for `resume`."""
        state = {
            "optimizer_name": self.settings.optimizer,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "best_network": self.best,
        }
        return write_versioned(CHECKPOINT_VERSION, state)

    def run(self) -> Trained:
        """Train to the end; the network then has the weights of its best epoch."""
        stopped = self._reason()
        while stopped == "" and not self.watch.stop():
            row = self._epoch(len(self.history) + 1)
            if row is None:
                break
            self.history.append(row)
            if (score := self._score(row)) > self.best_score:
                self.best_epoch, self.best_score = row["epoch"], score
                self.best = copy.deepcopy(self.network.state_dict())
            if self.watch.checkpoint:
                self.watch.checkpoint(self.checkpoint())
            self.watch.epoch(row)
            stopped = self._reason()
        self.network.load_state_dict(self.best)
        return Trained(self.history, self.best_epoch, stopped or "signal")

    def _score(self, row: Row) -> float:
        """What the best epoch has most of; without a validation part the last epoch is the best."""
        if not self.validation:
            return float(row["epoch"])
        return float(row["val_accuracy"] if self.settings.monitor == "accuracy" else -row["val_loss"])

    def _reason(self) -> str:
        """Why training ends after the epochs so far; "" if it goes on."""
        done, patience = len(self.history), self.settings.patience
        if self.validation and patience is not None and done - self.best_epoch >= patience:
            return "patience"
        return "epochs" if done >= self.settings.epochs else ""

    def _epoch(self, epoch: int) -> Row | None:
        """One pass over the training part, and the validation after it; None if it was given up."""
        settings, rows = self.settings, len(self.train.labels)
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        order = torch.randperm(rows).numpy()
        self.network.train()
        began, done, total, right = time.perf_counter(), 0, 0.0, 0
        for start in range(0, rows, settings.batch_size):
            loss, hits = self._update(order[start : start + settings.batch_size], epoch - 1 + start / rows)
            count = min(settings.batch_size, rows - start)
            done, total, right = done + count, total + loss * count, right + hits
            if not math.isfinite(loss):
                self.network.load_state_dict(self.best)
                message = f"the loss became {loss} in epoch {epoch}: lower the learning rate (now {settings.lr:g})"
                raise DivergedError(message, settings=("lr",))
            self.watch.batch(epoch, done, rows, total / done, right / done, done / (time.perf_counter() - began))
            if self.watch.stop():
                return None
        seconds = time.perf_counter() - began
        figures = evaluate(self.network, self.validation, settings.autocast) if self.validation else None
        return {
            "epoch": epoch,
            "loss": total / rows,
            "accuracy": right / rows,
            "val_loss": figures.loss if figures else None,
            "val_accuracy": figures.accuracy if figures else None,
            "rate": settings.rate(epoch - 1),
            "seconds": seconds,
            "eval_seconds": time.perf_counter() - began - seconds,
            "rows_per_second": rows / seconds,
        }

    def _update(self, rows: npt.NDArray[np.int64], epoch: float) -> tuple[float, int]:
        """One step of the optimizer; the batch's mean loss and hits before it."""
        x = self.train.images.batch(rows, self.transform)
        y = torch.from_numpy(self.train.labels[rows].astype(np.int64)).to(x.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(epoch)
        self.optimizer.zero_grad()
        with computing(x.device, self.settings.autocast):
            z = self.step(x)
            loss = cross_entropy(z.float(), y, label_smoothing=self.settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach()), int((z.detach().argmax(1) == y).sum())


def make_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer of the settings, for all parameters of a network."""
    parameters = network.parameters()
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay)


def computing(device: torch.device, autocast: bool) -> AbstractContextManager[Any]:
    """bfloat16 for convolutions and products, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()


def outputs(network: nn.Module, images: Images, autocast: bool = False, at_once: int = EVALUATED) -> Iterator[torch.Tensor]:
    """What a network in evaluation mode gives of all images, in blocks, (rows, …) float32 on the device."""
    network.eval()
    for start in range(0, len(images), at_once):
        with torch.inference_mode(), computing(images.device, autocast):
            found = network(images.batch(slice(start, start + at_once)))
        yield found.float()


class Evaluation(NamedTuple):
    """What a network makes of a part.

    loss : mean cross-entropy, without label smoothing
    accuracy : share of the images whose likeliest class is theirs
    predicted : (n,) int64, the likeliest class of each image
    probability : (n,) float64, its probability
    """

    loss: float
    accuracy: float
    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]


def evaluate(network: nn.Module, part: Part, autocast: bool = False) -> Evaluation:
    """Measure a network on a part."""
    losses, predicted, probability, start = [], [], [], 0
    for z in outputs(network, part.images, autocast):
        y = torch.from_numpy(part.labels[start : start + len(z)].astype(np.int64)).to(z.device)
        shares = z.double().softmax(1).max(1)
        losses.append(cross_entropy(z.double(), y, reduction="none").cpu().numpy())
        predicted.append(shares.indices.cpu().numpy())
        probability.append(shares.values.cpu().numpy())
        start += len(z)
    classes = np.concatenate(predicted)
    right = float((classes == part.labels).mean())
    return Evaluation(float(np.concatenate(losses).mean()), right, classes, np.concatenate(probability))
