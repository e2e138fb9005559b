"""The notebooks of examples/ run from top to bottom, and hold their outputs."""
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))


@pytest.mark.slow
def test_notebooks_run() -> None:
    """One kernel runs all, so that torch is imported once; each begins with an empty namespace."""
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    cells = []
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        cells += [nbformat.v4.new_code_cell('%reset -f'), *notebook.cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, resources={'metadata': {'path': ROOT / 'examples'}}).execute()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_their_outputs(path: Path) -> None:
    nbformat = pytest.importorskip('nbformat')
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']
    assert any(output.get('data', {}).get('image/png') for cell in cells for output in cell.outputs)
    assert not [cell for cell in cells if not cell.execution_count]
    assert path.stat().st_size < 600_000
