"""The Python examples of README run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.processes import ROOT

README = ROOT / "README.md"


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The second example continues the first."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    one, many = capsys.readouterr().out.splitlines()
    assert float(one) > 0.95
    assert float(many.split()[-1]) > 0.95
    assert [path.name for path in tmp_path.iterdir()] == ["digits.safetensors"]
