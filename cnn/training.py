"""Training of a convolutional network: training loop, checkpoints, evaluation.

The random numbers of each epoch (order of the images, dropout, augmentation) depend only on the seed and the epoch number.
Therefore a training run that is resumed from a checkpoint gives exactly the same weights as an uninterrupted one, provided
that it runs on a CPU with the same number of threads.
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

from .checkpoint import CHECKPOINT_VERSION, MOMENTS, read_checkpoint
from .description import check_minimum, check_name
from .errors import DescriptionError, DivergedError, MissingError
from .files import write_versioned
from .images import Augmentation, Images

OPTIMIZERS = tuple(MOMENTS)
MONITORS = ("loss", "accuracy")
SCHEDULES = ("constant", "step", "cosine")
EVALUATED = 1024  # default batch size for inference

EpochLog = dict[str, Any]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training settings of a convolutional network.

    Parameters
    ----------
    optimizer : optimizer, one of `OPTIMIZERS`, as in torch.optim
    lr : initial learning rate
    momentum : momentum of the optimizer "sgd"
    weight_decay : weight decay of all parameters; decoupled from the gradient for "adamw"
    schedule : learning-rate schedule, one of `SCHEDULES`. "step" multiplies the learning rate by `lr_gamma` every `lr_step`
        epochs; "cosine" decreases it to 0 at the end of the training (Loshchilov & Hutter 2017, without restarts)
    batch_size : mini-batch size
    epochs : maximum number of epochs
    monitor : validation metric for the selection of the best epoch and for early stopping, one of `MONITORS`
    patience : early-stopping patience in epochs; None disables early stopping
    shuffle : whether the images are in a new random order in every epoch; with False, all epochs have the same mini-batches
    restore_best : whether the weights of the best epoch are restored at the end; with False, those of the last epoch are kept
    label_smoothing : label smoothing, as in torch.nn.functional.cross_entropy
    augmentation : random transforms of the training images
    seed : seed of the order of the images, dropout and augmentation
    autocast : whether convolutions and matrix products use bfloat16 (torch.autocast)
    compiled : whether to use torch.compile

    Raises
    ------
    DescriptionError : a number is out of range or a name is unknown
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
    shuffle: bool = True
    restore_best: bool = True
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    autocast: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("monitor", self.monitor, MONITORS)
        check_minimum(self, 1, "batch_size", "epochs", "lr_step", *(["patience"] if self.patience is not None else []))
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise DescriptionError(f"lr must be a positive number, not {self.lr}", settings=("lr",))
        for name in ("weight_decay", "momentum", "label_smoothing"):
            value, below = getattr(self, name), math.inf if name == "weight_decay" else 1
            if not 0 <= value < below:
                message = f"{name} must be at least 0 and {'finite' if below == math.inf else 'below 1'}, not {value}"
                raise DescriptionError(message, settings=(name,))

    def learning_rate(self, epoch: float) -> float:
        """Return the learning rate after `epoch` epochs, which may be a fraction such as 2.5."""
        if self.schedule == "step":
            return self.lr * self.lr_gamma ** (int(epoch) // self.lr_step)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))
        return self.lr


class Split(NamedTuple):
    """The images of a split and their labels. The labels are class indices of shape (n,)."""

    images: Images
    labels: Labels


class TrainResult(NamedTuple):
    """Result of `Trainer.run`.

    history : losses, accuracies, learning rate and times of each epoch
    best_epoch : number, counted from 1, of the epoch whose weights were restored; 0 if they are the initial weights. It is the
        last epoch if `Settings.restore_best` is false
    stopped : why the training ended: "epochs" or "patience", or "signal" if `Watch.stop` returned True
    """

    history: list[EpochLog]
    best_epoch: int
    stopped: str


@dataclass
class Watch:
    """Callbacks of a training run.

    batch : called after each mini-batch with the epoch number, the number of images done, the number of all training
        images, the mean loss and the accuracy of the epoch so far, and the number of images per second
    epoch : called after each epoch with the entry that was appended to the history
    checkpoint : called after each epoch with the content of a checkpoint; `Trainer.resume` needs only the latest one
    weights : called after each epoch, before `checkpoint`, with the epoch number; the network has the weights of this epoch
    stop : called before each epoch and after each mini-batch; if it returns True, the training ends and the current epoch
        is discarded
    """

    batch: Callable[[int, int, int, float, float, float], None] = lambda *values: None
    epoch: Callable[[EpochLog], None] = lambda log: None
    checkpoint: Callable[[bytes], None] | None = None
    stop: Callable[[], bool] = lambda: False
    weights: Callable[[int], None] = lambda epoch: None


def pick_device(name: str) -> torch.device:
    """Return the device with the given name. "auto" selects CUDA if it is available, and the CPU otherwise.

    Raises
    ------
    MissingError : the device is not available
    DescriptionError : the name is not a valid device name
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
            f"device {name!r} needs a CUDA GPU, but none is available; set device to cpu, or run `fastmlp doctor`",
            settings=("device",),
        )
    return device


class Trainer:
    """Training loop of a convolutional network.

    Parameters
    ----------
    network : the network; it is moved to the device of the training images and trained in place
    train : training split
    validation : validation split; with None, early stopping is disabled and the last epoch counts as the best
    settings : training settings
    watch : callbacks
    """

    def __init__(
        self, network: nn.Module, train: Split, validation: Split | None, settings: Settings, watch: Watch | None = None
    ) -> None:
        self.network = network.to(train.images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train, self.validation, self.settings, self.watch = train, validation, settings, watch or Watch()
        self.optimizer = make_optimizer(network, settings)
        self.forward = torch.compile(network) if settings.compiled else network
        self.augment = settings.augmentation.transform(*train.images.image_shape[:2])
        self.history: list[EpochLog] = []
        self.best_epoch, self.best_score = 0, -math.inf
        self.kept_network = copy.deepcopy(network.state_dict())  # of the best epoch, or without `restore_best`, of the last one

    def resume(self, data: bytes, name: str) -> None:
        """Restore the state of the training from a checkpoint; `run` then continues after its last epoch.

        Parameters
        ----------
        data : content of the checkpoint
        name : name of the file, for error messages

        Raises
        ------
        FileError : the checkpoint is damaged, has another format version, or was written for another network or optimizer
        """
        state = read_checkpoint(data, name, self.network, self.settings.optimizer)
        self.network.load_state_dict(state["network"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.history, self.best_epoch, self.best_score = state["history"], state["best_epoch"], state["best_score"]
        self.kept_network = state["best_network"]

    def checkpoint(self) -> bytes:
        """Serialize the state of the training for `resume`."""
        state = {
            "optimizer_name": self.settings.optimizer,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "best_network": self.kept_network,
        }
        return write_versioned(CHECKPOINT_VERSION, state)

    def run(self) -> TrainResult:
        """Train the network, and restore the weights of the best epoch at the end, or of the last one, see `Settings`.

        Raises
        ------
        DivergedError : the loss became NaN or infinite; the weights of that epoch were restored before the exception
        """
        stopped = self._stop_reason()
        while stopped == "" and not self.watch.stop():
            log = self._train_epoch(len(self.history) + 1)
            if log is None:
                break
            self.history.append(log)
            if (score := self._monitored_score(log)) > self.best_score:
                self.best_epoch, self.best_score = log["epoch"], score
            if self.kept_epoch == log["epoch"]:
                self.kept_network = copy.deepcopy(self.network.state_dict())
            self.watch.weights(log["epoch"])  # first: a run that is killed before the checkpoint repeats the epoch
            if self.watch.checkpoint:
                self.watch.checkpoint(self.checkpoint())
            self.watch.epoch(log)
            stopped = self._stop_reason()
        self.network.load_state_dict(self.kept_network)
        return TrainResult(self.history, self.kept_epoch, stopped or "signal")

    @property
    def kept_epoch(self) -> int:
        """Number of the epoch whose weights are kept; 0 if no epoch was completed."""
        return self.best_epoch if self.settings.restore_best else len(self.history)

    def _monitored_score(self, log: EpochLog) -> float:
        """Return the score that selects the best epoch (higher is better), or the epoch number without a validation split."""
        if not self.validation:
            return float(log["epoch"])
        return float(log["val_accuracy"] if self.settings.monitor == "accuracy" else -log["val_loss"])

    def _stop_reason(self) -> str:
        """Return "epochs" or "patience" if the training must end now, or "" if it continues."""
        done, patience = len(self.history), self.settings.patience
        if self.validation and patience is not None and done - self.best_epoch >= patience:
            return "patience"
        return "epochs" if done >= self.settings.epochs else ""

    def _train_epoch(self, epoch: int) -> EpochLog | None:
        """Train for one epoch, evaluate on the validation split, and return the history entry of the epoch.

        If `Watch.stop` returns True within the epoch, return None.
        """
        settings, rows = self.settings, len(self.train.labels)
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        order = torch.randperm(rows).numpy() if settings.shuffle else np.arange(rows)
        self.network.train()
        started, done, loss_sum, correct = time.perf_counter(), 0, 0.0, 0
        for start in range(0, rows, settings.batch_size):
            loss, batch_correct = self._train_step(order[start : start + settings.batch_size], epoch - 1 + start / rows)
            count = min(settings.batch_size, rows - start)
            done, loss_sum, correct = done + count, loss_sum + loss * count, correct + batch_correct
            if not math.isfinite(loss):
                self.network.load_state_dict(self.kept_network)
                message = f"the loss became {loss} in epoch {epoch}: lower the learning rate (now {settings.lr:g})"
                raise DivergedError(message, settings=("lr",))
            self.watch.batch(epoch, done, rows, loss_sum / done, correct / done, done / (time.perf_counter() - started))
            if self.watch.stop():
                return None
        seconds = time.perf_counter() - started
        validation = evaluate(self.network, self.validation, settings.autocast) if self.validation else None
        return {
            "epoch": epoch,
            "loss": loss_sum / rows,
            "accuracy": correct / rows,
            "val_loss": validation.loss if validation else None,
            "val_accuracy": validation.accuracy if validation else None,
            "lr": settings.learning_rate(epoch - 1),
            "seconds": seconds,
            "eval_seconds": time.perf_counter() - started - seconds,
            "rows_per_second": rows / seconds,
        }

    def _train_step(self, rows: npt.NDArray[np.int64], epoch: float) -> tuple[float, int]:
        """Take one optimizer step on a mini-batch.

        Return the mean loss and the number of correct predictions, both computed before the update.
        """
        x = self.train.images.batch(rows, self.augment)
        y = torch.from_numpy(self.train.labels[rows].astype(np.int64)).to(x.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(epoch)
        self.optimizer.zero_grad()
        with autocast_context(x.device, self.settings.autocast):
            z = self.forward(x)
            loss = cross_entropy(z.float(), y, label_smoothing=self.settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach()), int((z.detach().argmax(1) == y).sum())


def make_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer given by the settings, for all parameters of a network."""
    parameters = network.parameters()
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay)


def autocast_context(device: torch.device, autocast: bool) -> AbstractContextManager[Any]:
    """Return the context manager torch.autocast with bfloat16, or one that does nothing if autocast is disabled."""
    return torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()


def forward_batches(
    network: nn.Module, images: Images, autocast: bool = False, batch_size: int = EVALUATED
) -> Iterator[torch.Tensor]:
    """Yield the outputs of a network for consecutive batches of images, in evaluation mode and without gradients.

    Each output is a float32 tensor of shape (rows, …) on the device of the images.
    """
    network.eval()
    for start in range(0, len(images), batch_size):
        with torch.inference_mode(), autocast_context(images.device, autocast):
            output = network(images.batch(slice(start, start + batch_size)))
        yield output.float()


class Evaluation(NamedTuple):
    """Metrics and predictions of a network on a split.

    loss : mean cross-entropy, without label smoothing
    accuracy : fraction of correct predictions
    predicted : most probable class of each image, of shape (n,), int64
    probability : predicted probability of that class, of shape (n,), float64
    """

    loss: float
    accuracy: float
    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]


def evaluate(network: nn.Module, split: Split, autocast: bool = False) -> Evaluation:
    """Compute the metrics and predictions of a network on a split, in evaluation mode."""
    losses, predicted, probability, start = [], [], [], 0
    for z in forward_batches(network, split.images, autocast):
        y = torch.from_numpy(split.labels[start : start + len(z)].astype(np.int64)).to(z.device)
        most_probable = z.double().softmax(1).max(1)
        losses.append(cross_entropy(z.double(), y, reduction="none").cpu().numpy())
        predicted.append(most_probable.indices.cpu().numpy())
        probability.append(most_probable.values.cpu().numpy())
        start += len(z)
    classes = np.concatenate(predicted)
    accuracy = float((classes == split.labels).mean())
    return Evaluation(float(np.concatenate(losses).mean()), accuracy, classes, np.concatenate(probability))
