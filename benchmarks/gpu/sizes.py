"""Problem sizes of the GPU check."""

from __future__ import annotations

from dataclasses import dataclass

from fastmlp.bench.cases import CASES, ROWS, Case


@dataclass(frozen=True)
class Sizes:
    """Problem sizes. Fewer rows and rounds give a quick functional test.

    cases : networks and batch sizes for which engines are compared
    data : name of the data set
    rows : number of rows per epoch
    rounds : number of timed rounds in comparisons of engines
    device_rounds : number of timed rounds in measurements of the GPU alone
    rest : pause in seconds before each epoch of a comparison
    copied : size of the large copy in bytes
    barriers : a small and a large number of barriers per launch
    products : inputs and outputs of the layers whose matrix product is measured
    product_rows : number of rows of these products
    product_launches : number of launches of a product per round
    steps : number of training steps in the stage "bits"
    """

    cases: tuple[Case, ...] = CASES
    data: str = "fashion-mnist"
    rows: int = ROWS
    rounds: int = 3
    device_rounds: int = 7
    rest: float = 0.05
    copied: int = 2**28
    barriers: tuple[int, int] = (100, 1100)
    products: tuple[tuple[int, int], ...] = ((784, 128), (784, 512), (1024, 1024), (4096, 4096))
    product_rows: int = 4096
    product_launches: int = 20
    steps: int = 200


def grids(multiprocessors: int) -> list[int]:
    """Return the numbers of blocks for which barriers are measured.

    >>> grids(132)
    [1, 16, 33, 66, 132]
    """
    return sorted({1, min(16, multiprocessors), *(max(1, multiprocessors // divisor) for divisor in (4, 2, 1))})
