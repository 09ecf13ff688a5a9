"""Tests of fastmlp in a notebook that a Jupyter kernel executes: the progress bar, representations, figures and errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.processes import ROOT

CELLS = {
    "train": """
import os, signal, sys
import fastmlp
data = fastmlp.load_data("digits").split(validation=0.2, test=0.2, seed=0)
network = fastmlp.Network(hidden=(128,), dropout=0.2)
adam = fastmlp.Adam(learning_rate=0.001)
result = fastmlp.train(network, data.train, data.validation, optimizer=adam, epochs=3, progress=True)
""",
    "seeds": "results = fastmlp.train(network, data.train, data.validation, epochs=1, seeds=range(2), progress=True)",
    "Network": "network",
    "Optimizer": "adam",
    "Settings": "fastmlp.Settings(optimizer=adam, epochs=3)",
    "DataSplits": "data",
    "Split": "data.train",
    "Dataset": 'fastmlp.load_data("digits")',
    "Model": "result.model",
    "Scaling": "result.model.scaling",
    "TrainResult": "result",
    "History": "result.history",
    "SeedResults": "results",
    "plot": "result.plot()",
    "band": "results.plot()",
    "command": """
print(os.environ["MPLBACKEND"])
!{sys.executable} -m fastmlp train --backend numpy --hidden 16 --epochs 1 --out run
""",
    "error": "fastmlp.train(network, data.train, learning_rate=0.1)",
    "interrupt": """
interrupt = lambda row, engine: os.kill(os.getpid(), signal.SIGINT)
fastmlp.train(network, data.train, epochs=500, progress=True, callbacks=[interrupt])
""",
}
REPRESENTATIONS = list(CELLS)[list(CELLS).index("Network") : list(CELLS).index("plot")]


class Recording(NotebookClient):
    """Client that records the types of all messages about the output of each cell."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.types: dict[int, list[str]] = {}

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        self.types.setdefault(cell_index, []).append(msg["header"]["msg_type"])
        return super().process_message(msg, cell, cell_index)


class Executed:
    """The outputs of all cells by name, the types of their messages, and the working directory of the kernel."""

    def __init__(self, folder: Path) -> None:
        cells = [nbformat.v4.new_code_cell(code.strip()) for code in CELLS.values()]
        for name, cell in zip(CELLS, cells, strict=True):
            cell.metadata["tags"] = ["raises-exception"] if name in ("error", "interrupt") else []
        notebook = nbformat.v4.new_notebook(cells=cells)
        client = Recording(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(folder)}})
        client.execute()
        self.folder = folder
        self.outputs: dict[str, list[Any]] = {name: cell.outputs for name, cell in zip(CELLS, cells, strict=True)}
        self.types = {name: client.types[index] for index, name in enumerate(CELLS)}

    def only(self, name: str) -> Any:
        """Return the data of the only output of a cell, by MIME type."""
        (output,) = self.outputs[name]
        return output["data"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """Execute the notebook. Jupyter, IPython and the kernel write only to a temporary folder."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("MPLBACKEND", "JUPYTER_PATH"):
            patch.delenv(name, raising=False)
        return Executed(folder / "work")


def check_bar(data: dict[str, str], epoch: str) -> None:
    number, epochs = epoch.split("/")
    assert re.fullmatch(rf"epoch {epoch}  loss [\d.]+  accuracy [\d.]+(  val .*)?  [\d.]+k? rows/s", data["text/plain"])
    assert f"<b>epoch {epoch}</b>" in data["text/html"]
    assert f'<progress max="{epochs}" value="{number}.000"' in data["text/html"]


@pytest.mark.full
def test_the_progress_bar_is_updated_in_place_and_stays(executed: Executed) -> None:
    check_bar(executed.only("train"), "3/3")
    shown = [kind for kind in executed.types["train"] if "display" in kind or kind == "stream"]
    assert shown[0] == "display_data"
    assert set(shown[1:]) == {"update_display_data"}


@pytest.mark.full
def test_each_seed_has_a_line(executed: Executed) -> None:
    text = "".join(output["text"] for output in executed.outputs["seeds"])
    assert {output["name"] for output in executed.outputs["seeds"]} == {"stderr"}
    assert sorted(line.partition(":")[0] for line in text.splitlines()) == ["seed 0", "seed 1"]


@pytest.mark.full
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_representations_are_short(executed: Executed, name: str) -> None:
    data = executed.only(name)
    assert set(data) == {"text/plain", "text/html"}
    assert 1 <= len(data["text/plain"].splitlines()) <= 15
    assert data["text/html"].startswith("<table>")
    assert "object at 0x" not in data["text/plain"]
    assert name == "History" or data["text/plain"].startswith(name)


@pytest.mark.full
@pytest.mark.parametrize("name", ["plot", "band"])
def test_a_figure_is_displayed_as_an_image(executed: Executed, name: str) -> None:
    assert len(executed.only(name)["image/png"]) > 10_000


@pytest.mark.full
def test_the_command_line_ignores_the_backend_of_the_notebook(executed: Executed) -> None:
    text = "".join(output["text"] for output in executed.outputs["command"])
    assert text.startswith("module://matplotlib_inline")
    assert "epoch 1/1  loss" in text
    assert not re.search(r"\x1b\[[\d;?]*[A-KSTfhl]", text)  # colours, but no movements of the cursor, which notebooks ignore
    assert (executed.folder / "run" / "curves.png").stat().st_size > 0


@pytest.mark.full
def test_an_error_shows_its_message(executed: Executed) -> None:
    (error,) = executed.outputs["error"]
    assert (error["output_type"], error["ename"]) == ("error", "ConfigError")
    assert "write optimizer=fastmlp.Adam(learning_rate=0.001)" in error["evalue"]


@pytest.mark.full
def test_an_interrupted_run_keeps_its_progress_bar(executed: Executed) -> None:
    bar, error = executed.outputs["interrupt"]
    check_bar(bar["data"], "1/500")
    assert (error["ename"], error["evalue"]) == ("Interrupted", "training interrupted in epoch 1")
