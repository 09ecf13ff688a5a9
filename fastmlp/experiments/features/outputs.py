"""Results of the convolutional network alone, in the formats of `fastmlp train`: metrics, files saved during training, names.

The files have the names of those of a training run with a prefix, since a run folder can contain both. The files that are saved
during the training are in a folder next to the checkpoint, from which `publish` moves them to the figures.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.data.images.polarity import image_stats
from fastmlp.data.rows import Array
from fastmlp.data.splits import split_indices
from fastmlp.experiments.folder import CLASSES_NAME, MODELS_NAME, remove_files
from fastmlp.experiments.mistakes import MISTAKES_PICTURE
from fastmlp.experiments.plan import Say
from fastmlp.experiments.record import EPOCH_MODELS, EpochFiles
from fastmlp.experiments.result import CLASSES_PICTURE, CURVES_NAME, OTHER_CONFUSIONS
from fastmlp.files import make_folders, write_bytes
from fastmlp.files.reading import exists, files_matching, is_folder, read_bytes
from fastmlp.models.metrics import classification_metrics
from fastmlp.models.model import Model
from fastmlp.nn.network import Network
from fastmlp.reports.text import PREDICTIONS_NAME, REPORT_NAME

if TYPE_CHECKING:
    from fastmlp.experiments.features.extraction import Extracted, ExtractJob

PREFIX = "cnn-"  # start of the names of files that a training run has, too
CURVES, CONFUSION, MISTAKES = (f"{PREFIX}{name}" for name in (CURVES_NAME, OTHER_CONFUSIONS, MISTAKES_PICTURE))
REPORT, PREDICTIONS = (f"{PREFIX}{name}" for name in (REPORT_NAME, PREDICTIONS_NAME))
CLASSES, CLASSES_FIGURE, MODELS = (f"{PREFIX}{name}" for name in (CLASSES_NAME, CLASSES_PICTURE, MODELS_NAME))
FILTERS, MAPS, PROJECTION = "filters.png", "maps.png", "projection.png"
OPTIONAL = (PREDICTIONS, CLASSES_FIGURE)  # files that not every run writes


def output_names(splits: Iterable[str]) -> list[str]:
    """Return the names of the files that pictures.py writes for every run, in the order in which it writes them."""
    confusions = [CONFUSION.format(name) for name in splits]
    return [CURVES, *confusions, FILTERS, MAPS, PROJECTION, MISTAKES, REPORT]


def network_metrics(truth: Array, evaluation: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the metrics of a split as in result.json; `evaluation` is the fastmlp.cnn `Evaluation` of the split."""
    return {"loss": evaluation.loss, **classification_metrics(truth, evaluation.predicted, classes)}


def labels_of(job: ExtractJob) -> dict[str, Array]:
    """Return the labels of each split of the images."""
    images = job.images
    labels = {name: images.y[rows] for name, rows in split_indices(images, **job.config.split_sizes()).items()}
    return labels if images.y_test is None else labels | {"test": images.y_test}


# ------------------------------------------------------------------------------------------------ during the training


def epoch_files(job: ExtractJob, folder: Path) -> EpochFiles:
    """Return the per-class metrics and models of a run in a folder."""
    return EpochFiles(folder, job.config.per_class_every, job.config.save_every, PREFIX)


class EpochRecorder:
    """Callback of `Tools.train` that saves per-class metrics and models at intervals, see `EpochFiles`.

    A model is the network up to its last hidden layer as extractor, and the output layer as `Network`. Like any other model of
    features, it can be loaded, evaluated and used for the prediction of images.
    """

    def __init__(self, job: ExtractJob) -> None:
        self.files, self.images, self.labels = epoch_files(job, job.saved), job.images, labels_of(job)
        self.resumed = False

    def __call__(self, epoch: int, snapshot: Any) -> None:
        if not self.resumed:  # files of epochs after the checkpoint, or of an earlier run that starts again
            self.files.truncate(epoch - 1)
            self.resumed = True
        if self.files.per_class_every or self.files.save_every:
            make_folders(self.files.folder)
        self.files.write(epoch, lambda: self._metrics(snapshot), lambda path: self._model(snapshot).save(path))

    def _metrics(self, snapshot: Any) -> dict[str, Any]:
        found = snapshot.evaluate().items()
        return {name: classification_metrics(self.labels[name], one.predicted, self.images.classes) for name, one in found}

    def _model(self, snapshot: Any) -> Model:
        found, images = snapshot.classifier(), self.images
        network = Network(found.weight.shape)
        parameters = np.empty(network.parameters, np.float32)
        ((weight, bias),) = network.views(parameters)
        weight[:], bias[:] = found.weight, found.bias
        return Model(
            network,
            parameters,
            classes=images.classes,
            image_shape=images.image_shape,
            extractor=found.extractor,
            text_labels=images.text_labels,
            image_stats=image_stats(images.x, images.image_shape),
        )


# ------------------------------------------------------------------------------------------------ after the training


def remove_outputs(folder: Path, splits: Iterable[str]) -> None:
    """Remove all files of the network from a folder."""
    remove_files(folder, (*output_names(splits), *OPTIONAL))
    remove_saved(folder)


def remove_saved(folder: Path) -> None:
    """Remove the files that were saved during the training from a folder."""
    remove_files(folder, (CLASSES,))
    remove_files(folder / MODELS, (EPOCH_MODELS,))


def publish(found: Extracted, folder: Path, say: Say) -> None:
    """Move the files that were saved during the training to the folder of the figures, and remove those of an earlier run.

    Parameters
    ----------
    found : result of `extract_run`
    folder : folder of the figures
    say : function that is called with a message if files cannot be written, because the network was not trained
    """
    job = found.job
    saved = is_folder(job.saved)
    if saved or job.pictures is None or folder.absolute() != job.pictures.absolute():
        remove_saved(folder)
    for name in (CLASSES, *(str(Path(MODELS, path.name)) for path in files_matching(job.saved / MODELS, EPOCH_MODELS))):
        if exists(job.saved / name):
            make_folders((folder / name).parent)
            write_bytes(folder / name, read_bytes(job.saved / name))
    if saved:
        shutil.rmtree(job.saved, ignore_errors=True)  # last: if the process is killed, the next run moves the files again
    if found.made is None and (absent := absent_files(job, folder, found.result["cnn"])):
        say(
            f"{folder} lacks {', '.join(absent)}, which can be written only while the CNN is trained, but {job.out} exists; "
            "set force to train the CNN again"
        )


def absent_files(job: ExtractJob, folder: Path, trained: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that the settings require to be saved during the training, and that do not exist."""
    due = ((CLASSES, job.config.per_class_every), (MODELS, job.config.save_every))
    return [name for name, every in due if every and every <= trained["epochs"] and not exists(folder / name)]
