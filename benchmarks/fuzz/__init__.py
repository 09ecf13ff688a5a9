"""Read damaged and hostile files, and check that each is read or refused with a clear message: python -m benchmarks.fuzz

samples.py, trained.py   small valid samples of every format
readers.py               the functions of fastmlp that read files, each with its samples
"""
