"""SHA256SUMS is that of the package's data files as they are."""
import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / 'tools' / 'update_sums.py'


def test_sums_are_fresh() -> None:
    tool = runpy.run_path(str(TOOL))
    assert (tool['PACKAGE'] / 'SHA256SUMS').read_text(encoding='utf-8') == tool['sums'](tool['PACKAGE'])
