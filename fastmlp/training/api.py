"""The functions `train` and `train_many`: they check pairs of data, fit the scalings, and call the training loop."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from fastmlp.data.images.polarity import image_stats
from fastmlp.data.pairs import Split, as_split, checked_shape, default_loss, with_weights
from fastmlp.engines.cpu.codegen.observer import observer
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.network import Network
from fastmlp.nn.scaling import Scaling
from fastmlp.training.checkpoints.folder import DEFAULT_SECONDS, open_checkpoints
from fastmlp.training.loop import Callback, Diverged, Progress, WriteFailed, train_task
from fastmlp.training.many import EpochCallback, Result, ResultCallback, naming, train_tasks
from fastmlp.training.progress import COMPILING, make_progress
from fastmlp.training.result import SeedResults, TrainResult
from fastmlp.training.settings import DEFAULT_SCALING, Settings, Task, TrainingData, check_names, make_task, prepare

Pair = Split | tuple[Any, Any]
ManySettings = Settings | Mapping[str, Any]


class DataOptions(NamedTuple):
    """The arguments of `train` and `train_many` that describe the data; see `train`."""

    scaling: str | Scaling | None
    target_scaling: str | Scaling | None
    sample_weight: npt.ArrayLike | None
    class_weight: Mapping[Any, float] | str | None
    classes: Sequence[Any] | None
    image_shape: tuple[int, int, int] | None


@overload
def train(
    network: Network, train: Pair, validation: Pair | None = None, *, seeds: None = None, **given: Any
) -> TrainResult: ...


@overload
def train(
    network: Network, train: Pair, validation: Pair | None = None, *, seeds: Iterable[int], **given: Any
) -> SeedResults: ...


def train(  # noqa: PLR0913 - keyword-only, with defaults
    network: Network,
    train: Pair,
    validation: Pair | None = None,
    *misplaced: Any,
    settings: Settings | None = None,
    scaling: str | Scaling | None = DEFAULT_SCALING,
    target_scaling: str | Scaling | None = DEFAULT_SCALING,
    sample_weight: npt.ArrayLike | None = None,
    class_weight: Mapping[Any, float] | str | None = None,
    classes: Sequence[Any] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | Progress = False,
    seeds: Iterable[int] | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_seconds: float = DEFAULT_SECONDS,
    resume: str | Path | bool | None = None,
    strict: bool = False,
    **changes: Any,
) -> TrainResult | SeedResults:
    """Train a network, and return the model with the weights of the best epoch, or with `restore_best=False` of the last one.

    Parameters
    ----------
    network : the network; the data determine its input and output sizes and its loss if they are not set
    train : pair (x, y) of the training split: a split of `Dataset.split`, or a tuple. x has shape (n, features), or
        (n, height, width[, channels]) for images, with numbers of any dtype: an array, a list, a data frame, a memory-mapped
        array, or a `rows.Subset`. y has one target per row: class labels (n,), which are strings, Booleans or integers, or
        numbers (n,) or (n, k). Integers are class labels unless the network has a loss for numbers or one output; floats are
        numbers. If all sizes of the network are given, integer labels must be 0 to outputs - 1
    validation : pair of the validation split, which is evaluated after each epoch to determine the best epoch; without it,
        the last epoch is the best
    settings : training settings; None for the defaults of `Settings`
    scaling : scaling that is applied to all features and stored with the model: the name of a scaling, which is fitted to the
        training split, see `fit_scaling`; a fitted `Scaling`; or None for no scaling
    target_scaling : scaling of regression targets, in the same form as `scaling`. It is only used for the losses squared-error,
        absolute-error, huber and quantile with a linear output. Predictions are on the original scale; losses are those of the
        scaled targets
    sample_weight : (n,) positive weights of the training rows: the loss of a mini-batch is the weighted mean. Validation losses
        are not weighted
    class_weight : dict from class label to a positive factor for the weights of its rows, or "balanced" for factors that are
        inversely proportional to the numbers of rows, as in scikit-learn
    classes : names of the classes, in the order of the outputs: `classes[i]` is the name of the integer label i, or a string
        label itself. None selects the sorted distinct labels. Not allowed if `train` is a split of a `Dataset`
    image_shape : (height, width, channels) if x (n, features) contains images; required by `Settings.flip` and
        `Settings.shift`, and stored with the model
    callbacks : functions that are called after each epoch with the last dict of the history and the engine; if one of them
        returns True, training stops
    progress : True to show the progress on stderr or in a notebook, or a progress display from `progress.make_progress`, which
        the caller starts and closes
    seeds : random seeds; the network is trained once per seed, in parallel, and `seed` is ignored. `threads` is the number of
        models that are trained at the same time. Callbacks are called in the threads that train. With `progress`, a line per
        finished seed is written to stderr
    checkpoints : folder for checkpoints, from which an interrupted training run can be resumed; it is created and locked. One
        is written after an epoch if the last one is older than `checkpoint_seconds`, and one at the end; the last two are kept.
        Not available with `seeds`
    checkpoint_seconds : minimum time between two checkpoints in seconds; 0 writes one after each epoch
    resume : True to resume the run from the newest checkpoint in the folder `checkpoints`, or start from the beginning if there
        is none; or the path of a checkpoint, of a folder of checkpoints, or of a run folder, to resume from that. The other
        arguments must be the same as before, except `epochs` (only with schedules that do not depend on it), `patience`,
        `max_time`, `backend` and `threads`. The result is bitwise identical to that of an uninterrupted run if the engine, the
        processor and the package versions are the same; otherwise a warning is issued
    strict : whether to raise ConfigError instead of this warning
    changes : fields of `Settings`, such as `optimizer`, `schedule`, `epochs`, `batch_size`, `patience` and `seed`, which
        replace those of `settings`

    Returns
    -------
    TrainResult, or with `seeds` SeedResults

    Raises
    ------
    ConfigError : the settings contradict each other or do not fit the data; the settings of a resumed run have changed; or the
        folder `checkpoints` has checkpoints of another run, or another run is writing to it
    DataError : the data are invalid, do not fit the network, or are not those of the resumed run; or there is no checkpoint
    WriteError : the folder `checkpoints` cannot be created
    Diverged : a loss or a weight became NaN or infinite; with `seeds`, in any of the runs
    Interrupted : SIGINT or SIGTERM was received (in the main thread only); contains the result so far. With `seeds`,
        ManyInterrupted
    WriteFailed : a checkpoint could not be written; contains the result so far

    Warns
    -----
    RuntimeWarning : a run is resumed with another engine, processor or package version, or the newest checkpoint is damaged

    Examples
    --------
    >>> import fastmlp
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = np.where(x[:, 0] * x[:, 1] > 0, "same", "different")
    >>> network = fastmlp.Network(hidden=(16,), activation="tanh")
    >>> result = train(network, (x, y), optimizer=fastmlp.Adam(learning_rate=0.03), epochs=40, batch_size=16)
    >>> result.model.predict([[1, 1], [-1, 1]]).tolist(), result.model.score(x, y) > 0.9
    (['same', 'different'], True)
    """
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise ConfigError(f"callbacks must be a list of functions f(log, engine), not {type(callbacks).__name__}")
    if seeds is not None and not isinstance(seeds, Iterable):
        raise ConfigError(f"seeds must be a sequence of seeds, not {seeds!r}; write seeds=range({seeds})")
    if misplaced:
        raise ConfigError("the data must be pairs: write fastmlp.train(network, (x, y), (x_validation, y_validation))")
    settings = changed_settings(settings, changes)
    options = DataOptions(scaling, target_scaling, sample_weight, class_weight, classes, image_shape)
    network, data = bind(network, settings.dtype, train, validation, options)
    task = make_task(network, settings, data)
    if seeds is not None:
        if checkpoints is not None or resume:
            raise ConfigError(
                "checkpoints and resume are for one training, not for several seeds; train each seed in a separate call"
            )
        return train_seeds(task, tuple(seeds), callbacks, progress is not False)
    stored = open_checkpoints(task, checkpoints, checkpoint_seconds, resume, strict)
    with ExitStack() as stack:
        stack.enter_context(stored.exclusive())
        if isinstance(progress, bool):
            progress = stack.enter_context(make_progress(quiet=not progress, epochs=settings.epochs))
        return train_task(task, callbacks, progress, stored)


def train_many(  # noqa: PLR0913 - keyword-only, with defaults
    jobs: Sequence[tuple[Network, ManySettings]],
    train: Pair,
    validation: Pair | None = None,
    *,
    scaling: str | Scaling | None = DEFAULT_SCALING,
    target_scaling: str | Scaling | None = DEFAULT_SCALING,
    sample_weight: npt.ArrayLike | None = None,
    class_weight: Mapping[Any, float] | str | None = None,
    classes: Sequence[Any] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    threads: int | None = None,
    callbacks: Sequence[Sequence[Callback]] | None = None,
    progress: EpochCallback | None = None,
    finished: ResultCallback | None = None,
) -> list[Result]:
    """Train many networks concurrently on the same data, each in one thread.

    The results are bit-identical to those of `train`. The data are checked only once, and are shared by all threads. Models
    that need the most floating-point operations are started first.

    Parameters
    ----------
    jobs : network and settings of each model; the settings are a `Settings` or a dict of its fields. `Settings.threads` only
        sets the number of threads for predictions with the trained model.
    train, validation, scaling, target_scaling, sample_weight, class_weight, classes, image_shape : see `train`; the same for
        all models
    threads : number of models that are trained at the same time; None for the number of CPU cores available to this process
    callbacks : one sequence of callbacks per job, see `train`; they are called in the thread that trains the model
    progress : function that is called after each epoch of a model with the index of the job and the last dict of its history;
        called in the thread of the caller
    finished : function that is called at the end of each training run with the index of the job and its result, but not if a
        signal stopped the run; called in the thread of the caller

    Returns
    -------
    list : one entry per job, in the order of `jobs`: the `TrainResult`, or the exception `Diverged` if training diverged. The
        other models are trained to the end in this case.

    Raises
    ------
    ConfigError, DataError : see `train`; the message contains the index of the job. Raised before any model is trained.
    ManyInterrupted : SIGINT or SIGTERM was received (in the main thread only); raised after all threads have ended

    If `progress`, `finished` or a callback raises an exception, or training fails with an error other than divergence, all
    models are stopped and the exception is raised in the thread of the caller.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = (x[:, 0] > x[:, 1]).astype(int)
    >>> jobs = [(Network(hidden=width), {"optimizer": "sgd", "epochs": 3, "seed": width}) for width in (4, 8, 12)]
    >>> [len(result.history) for result in train_many(jobs, (x, y))]
    [3, 3, 3]
    """
    options = DataOptions(scaling, target_scaling, sample_weight, class_weight, classes, image_shape)

    def bound(network: Network, dtype: npt.DTypeLike) -> tuple[Network, TrainingData]:
        return bind(network, dtype, train, validation, options)

    return train_tasks(make_tasks(jobs, bound), threads=threads, callbacks=callbacks, progress=progress, finished=finished)


def changed_settings(settings: Any, changes: Mapping[str, Any]) -> Settings:
    """Return the settings, or the defaults for None, with some fields replaced; raise ConfigError if they are invalid."""
    check_names(changes)
    if settings is not None and not isinstance(settings, Settings):
        raise ConfigError("settings must be a fastmlp.Settings; write settings=fastmlp.Settings(epochs=10), or epochs=10")
    return replace(settings or Settings(), **changes)


def show_settings(function: Callable[..., Any]) -> None:
    """Show the fields of `Settings` in the signature of a function, instead of `changes`, for `help` and for editors."""
    own = [one for one in inspect.signature(function).parameters.values() if one.name not in ("misplaced", "changes")]
    of_settings = list(inspect.signature(Settings.__init__).parameters.values())[1:]
    shown = [*own, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in of_settings)]
    function.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]


show_settings(train)


def bind(
    network: Network, dtype: npt.DTypeLike, train: Pair, validation: Pair | None, options: DataOptions
) -> tuple[Network, TrainingData]:
    """Check the data, and return them with the network, completed with the sizes and the loss that the data need.

    Raises
    ------
    ConfigError, DataError : see `train`
    """
    given: Any = network
    if not isinstance(given, Network):
        raise ConfigError(f"the first argument must be a fastmlp.Network, not an object of type {type(given).__name__}")
    scaling, target_scaling, sample_weight, class_weight, classes, image_shape = options
    if classes is not None and isinstance(train, Split):
        raise ConfigError("the split has its own classes; leave classes out")
    split = as_split(train, "training", network, dtype, classes=classes, image_shape=image_shape)
    split = with_weights(split, sample_weight, class_weight)
    rows, held_out, labels = split.rows, None, split.rows.y.ndim == 1
    if validation is not None:
        held_out = as_split(validation, "validation", network, dtype, classes=split.classes, encoding=split.encoding).rows
        if held_out.y.shape[1:] != rows.y.shape[1:]:
            raise DataError(f"training targets have the shape {rows.y.shape}, but validation targets {held_out.y.shape}")
    outputs = len(split.classes) if labels else rows.y.shape[1]
    loss = network.loss or default_loss(rows, None if isinstance(train, Split) else train[1])
    network = network.complete(rows.x.shape[1], outputs, loss)
    data = prepare(network, rows, held_out, scaling=scaling, target_scaling=target_scaling)
    shape = checked_shape(image_shape) or split.image_shape
    described: dict[str, Any] = {"text_labels": split.text_labels, "encoding": split.encoding}
    stats = image_stats(rows.x, shape)
    return network, replace(data, classes=split.classes, image_shape=shape, image_stats=stats, **described)


def make_tasks(
    jobs: Sequence[tuple[Network, ManySettings]],
    bound: Callable[[Network, npt.DTypeLike], tuple[Network, TrainingData]],
) -> list[Task]:
    """Create a task for each job. All tasks with the same dtype, input and output sizes and loss share their data.

    bound : function that completes a network and returns it with the checked data, see `bind`

    Raises
    ------
    ConfigError, DataError : see `train`; the message contains the index of the job
    """
    shared: dict[Any, tuple[Network, TrainingData]] = {}
    tasks = []
    for index, job in enumerate(jobs):
        with naming(index):
            if not (isinstance(job, tuple | list) and len(job) == 2 and isinstance(job[1], Settings | Mapping)):
                raise ConfigError(f"a job must be a pair (network, settings), not {type(job).__name__}; write (network, {{}})")
            network, given = job
            settings = given if isinstance(given, Settings) else Settings(**given)
            key = np.dtype(settings.dtype), network.sizes[0], network.sizes[-1], network.loss, network.output
            if key not in shared:
                shared[key] = bound(network, settings.dtype)
            known, data = shared[key]
            tasks.append(make_task(network.complete(known.sizes[0], known.sizes[-1], known.loss), settings, data))
    return tasks


def train_seeds(task: Task, seeds: tuple[int, ...], callbacks: Sequence[Callback], progress: bool) -> SeedResults:
    """Train a task with several seeds concurrently; see `train`.

    Raises
    ------
    ConfigError : there are no seeds
    Diverged : training diverged with one of the seeds
    ManyInterrupted : see `train_many`
    """
    if not seeds:
        raise ConfigError("seeds is empty; give at least one seed, such as seeds=range(5)")
    tasks = [task._replace(settings=replace(task.settings, seed=seed)) for seed in seeds]

    def finished(index: int, result: Result) -> None:
        if progress and isinstance(result, TrainResult):
            metrics = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.metrics.items())
            print(f"seed {seeds[index]}: {result.kept}  {metrics}", file=sys.stderr)

    with observer(lambda: print(COMPILING, file=sys.stderr)) if progress else nullcontext():
        results = train_tasks(tasks, threads=task.settings.threads, callbacks=[callbacks] * len(tasks), finished=finished)
    for seed, result in zip(seeds, results, strict=True):
        if isinstance(result, Diverged):
            raise Diverged(f"seed {seed}: {result}", result.training, settings=result.settings)
        if isinstance(result, WriteFailed):  # raised by a callback
            raise WriteFailed(f"seed {seed}: {result}", result.training)
    return SeedResults(seeds, [result for result in results if isinstance(result, TrainResult)])
