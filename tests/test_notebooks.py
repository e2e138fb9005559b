"""The notebooks of examples/ hold their outputs. `.ci/run` runs them from top to bottom."""
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_their_outputs(path: Path) -> None:
    nbformat = pytest.importorskip('nbformat')
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']
    assert any(output.get('data', {}).get('image/png') for cell in cells for output in cell.outputs)
    assert not [cell for cell in cells if not cell.execution_count]
    assert path.stat().st_size < 600_000
