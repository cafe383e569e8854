"""Every notebook runs from top to bottom, with smaller numbers than the ones that a reader sees."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

SMALLER = {
    "01_locate_a_behaviour": {"n=8, seed=0": "n=2, seed=0", '"q", "k", "v", "pattern"': '"k", "pattern"'},
    "02_from_scores_to_circuits": {
        "n=4, seed": "n=2, seed",
        "random=2": "random=1",
        '"attn_out", "mlp_out", "heads"': '"heads"',
        "n=16, seed": "n=4, seed",
    },
    "03_attention_heads": {"n=4, length=128": "n=1, length=64", "n=4)": "n=1)", "n=8": "n=2"},
    "04_sinks_and_retrieval": {
        "model, n=8": "model, n=2",
        "n=20": "n=2",
        "n=6, length=96": "n=1, length=64",
        "steps=600": "steps=10",
        "lengths=(256,), n=1)": "lengths=(128,), depths=(0.5,), n=1)",
        "lengths=(256,), depths=(0.2, 0.5, 0.8)": "lengths=(256,), depths=(0.2, 0.8)",
        "ks=(0, 2, 8), draws=2, texts=2": "ks=(0, 2), draws=1, texts=1",
    },
    "05_dictionaries": {
        "tokens=16_000": "tokens=2_000",
        "tokens=160_000": "tokens=4_000",
        "n=12, length=96": "n=2, length=48",
        "range(200)": "range(10)",
    },
    "06_circuit_tracing": {"n=15, groups=8": "n=5, groups=2"},
    "07_findings_make_it_cheaper": {
        "lengths=(256,), n=2": "lengths=(128,), depths=(0.5,), n=1",
        "model, n=4": "model, n=2",
        "length = 384": "length = 192",
        "window=48, n=3": "window=48, n=1",
        "n=2)": "n=1)",
    },
}
"""What each notebook's text is replaced by, so that all its code runs in seconds."""


def smaller(path: Path):
    """The notebook with small numbers; every one of them must be there to be replaced."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for there, here in SMALLER[path.stem].items():
        assert any(there in cell.source for cell in code), f"{path.stem} has no {there!r}"
        for cell in code:
            cell.source = cell.source.replace(there, here)
    return notebook


def test_every_notebook_has_its_small_numbers():
    assert [path.stem for path in NOTEBOOKS] == list(SMALLER)


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks, which loads each model once."""
    manager, client = start_new_kernel(kernel_name="python3")
    client.execute_interactive("import functools, interp; interp.load = functools.cache(interp.load)")
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.real_model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom(path, kernel, tmp_path):
    notebook = smaller(path)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}"))
    NotebookClient(notebook, timeout=900, km=kernel).execute(cleanup_kc=False)
    texts = [str(output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert texts
    assert not any("Traceback" in text for text in texts)
