"""The notebooks under ``examples/`` run, and show what they promise."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

NOTEBOOK = ROOT / "examples/first_comparison.ipynb"


def test_first_comparison(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which the command line has set here
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {cell.source: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert not any(cell.outputs or cell.execution_count for cell in cells.values())
    [parameters] = [
        each for each in cells.values() if "parameters" in each.metadata.get("tags", [])
    ]
    small = {"data": str(image_folder), "backbone": "vit_nano", "batch_size": 16}
    parameters.source = f"shared, epochs = {small | {'evals': ['knn', 'linear']}}, 20"
    mistake = nbformat.v4.new_code_cell('ssl_bench.run(method="mea")')
    mistake.metadata["tags"] = ["raises-exception"]
    notebook.cells.append(mistake)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def cell_of(source: str) -> Any:
        [cell] = [cell for own, cell in cells.items() if f"{own}\n".startswith(source)]
        return cell

    def shown(source: str, kind: str) -> list[str]:
        return [o.data[kind] for o in cell_of(source).outputs if kind in o.get("data", {})]

    assert shown("mae = ", "text/html") == [""]  # the bar, which was there and is gone
    log = [o.text for o in cell_of("mae = ").outputs if o.output_type == "stream"]
    assert "run folder:" in "".join(log)
    [page] = shown("mae\n", "text/html")
    assert page.count("data:image/png;base64,") == 2 and "<td>linear</td>" in page
    assert len(shown("mae.plot_loss", "image/png")) == 1
    [page] = shown("both", "text/html")
    assert "<td>mae</td>" in page and "<td>mocov3</td>" in page
    assert len(shown("scores", "image/png")) == 1
    assert len(shown("from sklearn", "image/png")) == 1
    [told] = shown("import timm", "text/plain")
    assert "'input_size': (3, 16, 16)" in told
    [error] = mistake.outputs
    assert (error.ename, len(error.traceback)) == ("UserError", 1)
    assert "'mae'" in error.traceback[0]
    complaints = [o.text for cell in cells.values() for o in cell.outputs if _is_complaint(o)]
    assert not complaints


def _is_complaint(output: Any) -> bool:
    return output.output_type == "stream" and output.name == "stderr"
