"""Read damaged and malicious files, and check that each is read or rejected with a clear message: python -m benchmarks.fuzz

samples.py, trained.py    small valid samples of every format
readers.py                the functions of fastmlp that read files, each with its samples
mutators.py               mutations of bytes and text; those of formats are in archives.py (zip, gzip), npy.py, pickles.py,
                          tensors.py (safetensors, models, Parquet, IDX), documents.py (JSON, TOML, tables), and
                          pictures.py (PNG, JPEG, TIFF)
mutants.py                generates the mutant with a given number; the mutators of each file name
outcomes.py               reads a mutant, and decides whether the outcome is a finding
campaign.py               worker processes, which may crash or hang
findings.py, findings/    the smallest mutant of each finding, which the tests read again
atheris_targets.py, atheris_child.py   fuzzing of each reader with Atheris
bitflips.py               every single-bit flip of a checkpoint and of a model file
memory.py, large.py       peak memory of reading large files
"""
