"""Loading of a data set that is given by name or path: `load_data`.

The readers of the file formats are in readers/, and the encoding of tables is in tables/. dataset.py checks what they return.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastmlp.data.dataset import TASKS, Dataset, check_dataset
from fastmlp.data.named import DATASETS, load_named
from fastmlp.data.readers.arrays import RawArrays, is_npy_folder, read_npy_folder, read_npz, read_pt, read_safetensors
from fastmlp.data.readers.idx_folder import is_idx, read_idx_folder
from fastmlp.data.readers.images import read_image_folder
from fastmlp.data.readers.table import is_table
from fastmlp.data.tables.encoding import TableEncoding
from fastmlp.data.tables.load import FitRows, load_table
from fastmlp.data.tables.target import TableOptions
from fastmlp.errors import ConfigError, DataError, unknown_name
from fastmlp.files.limits import decompression_limit
from fastmlp.files.reading import check_regular, exists, given_path, is_folder, real_path
from fastmlp.nn.names import canonical_name


def load_data(  # noqa: PLR0913 - the options of all sources
    source: str | Path,
    data_dir: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    task: str | None = None,
    weight: str | None = None,
    target: str | int | None = None,
    drop: str | int | Sequence[str | int] = (),
    missing: str | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    skip_bad: bool = False,
    max_decompressed: float | None = None,
    progress: bool = False,
) -> Dataset:
    """Load a data set by name or by path.

    Parameters
    ----------
    source : the name of a data set in `DATASETS`, or the path of a table (.csv, .tsv, .csv.gz, .parquet), of an .npz, .pt or
        .safetensors file, of a folder with x.npy and y.npy, of a folder with IDX files, or of an image folder with one
        subfolder per class (see readers/). A name takes precedence over a path: write ./mnist to load a folder called mnist.
    data_dir : folder to which the files of data sets loaded by name are downloaded (see `download.data_folder`)
    image_size : (height, width) to which the images of an image folder are resized
    task : "classification" if the targets are class labels, "regression" if they are numbers; None to infer it
    weight : name of the column of a table, or of the array, with the sample weights of the training rows; it is not a
        feature. None for equal weights
    target : for tables, the name of the target column, its number from 1, "first" or "last"; a name takes precedence. None to
        choose it by the rules in docs/tables.md
    drop : for tables, names or numbers of columns to exclude from the features
    missing : for tables, how missing values are handled: "drop" drops their rows, and "mean" and "median" impute them in
        columns of numbers; with None, they are an error
    delimiter : for tables, the character between two cells, or "tab", "comma", "semicolon", "space" or "pipe"; None to detect
        it
    header : for tables, whether the first row contains the names of the columns; None to detect it
    skip_bad : whether unreadable files of an image folder are left out
    max_decompressed : maximum size, in GiB, of the decompressed contents of a file and of the arrays declared in its header;
        None means 1 GiB. Up to 50 times the size of the file is always accepted
    progress : whether to show a progress bar on stderr while downloading

    Raises
    ------
    ConfigError : unknown task, invalid image_size, or a setting that does not apply to this source
    DataError : unknown name, missing path, damaged data, or data larger than max_decompressed; or a table whose target is not
        clear, with missing values, or with too many categories
    UnavailableError : a file is missing and cannot be downloaded

    Examples
    --------
    >>> data = load_data("digits")
    >>> data.x.shape, data.x.dtype, len(data.classes), data.image_shape
    ((1797, 784), dtype('uint8'), 10, (28, 28, 1))
    """
    column = None if target is None else str(target)
    dropped = (drop,) if isinstance(drop, str | int) else drop
    table = TableOptions(column, tuple(map(str, dropped)), missing, task, weight, delimiter, header)
    given_path("source", source)
    return load_source(Source(str(source), data_dir, image_size, table, progress, skip_bad, max_decompressed))


class Source(NamedTuple):
    """A source of data and how it is read; see `load_data` for the fields.

    encoding : the encoding of a saved model, which is applied to a table instead of a new one
    fit_rows : function that returns the rows to which the encoding of a table is fitted, see `load_table`
    """

    name: str
    data_dir: str | Path | None = None
    image_size: tuple[int, int] | None = None
    table: TableOptions = TableOptions()
    progress: bool = False
    skip_bad: bool = False
    max_decompressed: float | None = None
    encoding: TableEncoding | None = None
    fit_rows: FitRows | None = None


def load_source(source: Source) -> Dataset:
    """Load a data set; see `load_data`."""
    name, path, options = source.name, Path(source.name), source.table
    task = None if options.task is None else canonical_name("task", options.task, TASKS)
    named = name in DATASETS
    images = not named and is_image_folder(path)
    if not (named or exists(path)):
        hint = "give a valid name, or the path of a table, an .npz file or a folder"
        raise DataError(f"{unknown_name('data set', name, DATASETS)}; there is no such file or folder either; {hint}")
    if not (named or is_folder(path)):
        check_regular(path)
    check_image_size(name, source.image_size, images)
    if source.skip_bad and not images:
        raise ConfigError(f"skip_bad is for folders of images, not for {name!r}; leave it out", settings=("skip_bad",))
    if task == "regression" and images:
        raise ConfigError(
            f"{path}: the targets of a folder of images are classes, not numbers; use task 'classification'",
            settings=("task",),
        )
    if options.weight is not None and (named or images or is_idx(path)):
        raise ConfigError(f"{name} has no sample weights; leave weight out", settings=("weight",))
    check_table_options(name, options, not (named or is_folder(path)) and is_table(path))
    with decompression_limit(source.max_decompressed):
        if named:
            return check_dataset(load_named(name, source.data_dir, source.progress), name, task)
        arrays = _read(path, source._replace(table=options._replace(task=task)))
    return check_dataset(arrays, name_of(path), task)


def name_of(path: Path) -> str:
    """Return the name of the data set at a path: the name of the file without suffixes, or of the folder.

    >>> name_of(Path("/data/table.csv.gz")), name_of(Path("/data/KMNIST/raw"))
    ('table', 'KMNIST')
    """
    path = real_path(path)
    stem = path.parent.name if path.name == "raw" else path.stem
    return Path(stem).stem if path.suffix == ".gz" else stem


def check_image_size(name: str, image_size: tuple[int, int] | None, images: bool) -> None:
    """Raise ConfigError if an image size is invalid, or the source is no folder of images."""
    if image_size is None:
        return
    if not images:
        raise ConfigError(f"image_size is for folders of images, not for {name!r}; leave it out", settings=("image_size",))
    if len(image_size) != 2 or min(image_size) < 1:
        raise ConfigError(f"image_size must be a height and a width of at least 1, not {image_size}", settings=("image_size",))


def check_table_options(name: str, options: TableOptions, is_a_table: bool) -> None:
    """Raise ConfigError if an option for tables is given, but the source is no table."""
    for option in ("target", "drop", "missing", "delimiter", "header"):
        if not is_a_table and getattr(options, option) not in (None, ()):
            raise ConfigError(f"{option} is for tables such as .csv files, not for {name!r}; leave it out", settings=(option,))


def is_image_folder(path: Path) -> bool:
    """Return whether a path is a folder of images with one subfolder per class, and not one of `.npy` or IDX files."""
    return is_folder(path) and not is_npy_folder(path) and not is_idx(path)


def _read(path: Path, source: Source) -> RawArrays:
    weight = source.table.weight
    if is_folder(path):
        if is_npy_folder(path):
            return read_npy_folder(path, weight)
        return read_idx_folder(path) if is_idx(path) else read_image_folder(path, source.image_size, source.skip_bad)
    if is_table(path):
        return load_table(path, source.table, source.encoding, source.fit_rows)
    match path.suffix.lower():
        case ".npz":
            return read_npz(path, weight)
        case ".safetensors":
            return read_safetensors(path, weight)
        case ".pt" | ".pth":
            return read_pt(path, weight)
        case ".npy":  # one of a pair
            return read_npy_folder(path.parent, weight)
    if is_idx(path):
        return read_idx_folder(path)
    raise DataError(
        f"{path}: unknown file type; give a table (.csv, .tsv, .parquet), an .npz, .pt or .safetensors file, or a folder of "
        "images, IDX or .npy files"
    )
