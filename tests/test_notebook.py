"""docs/notebooks: run from top to bottom, with a few updates."""

import base64
import io
import os
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter, which runs the cells in a process of its own
def test_the_notebook_of_own_images(tmp_path, monkeypatch):
    nbclient, nbformat = import_module("nbclient"), import_module("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "own_images.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (counts,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    counts.source = "updates, classifier_updates = 20, 20"

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()

    pictures = [
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3  # reconstructions, neighbours, mistakes
    for picture in pictures:
        darkest, brightest = picture.convert("L").getextrema()
        assert picture.width > 400 and darkest < 20 and brightest > 235
    assert (tmp_path / "runs" / "classifier" / "results.json").is_file()
