"""Kill, interrupt and fail runs at many moments, and check that nothing is lost: python -m benchmarks.durability

calls.py   observe the calls of the operating system that change files
faults.py  fail each of these calls in turn
power.py   build the folders that a power failure may leave
trials.py  the runs that are failed, and the checks of the files that they leave
child.py   the command line in a process that reports its phase, and kills itself at a chosen call
moments.py kill and interrupt such processes at random moments
"""
