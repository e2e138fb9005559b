"""What a user gets: a package with nothing beside it, a light import, documents that are true."""
import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tinyvit_zoo

ROOT = Path(__file__).parent.parent
ELSEWHERE = {  # test files without a file of the package, and their subject
    'cli/test_jobs.py': 'several recipes by one `train --jobs`',
    'layers/test_sl_layers.py': 'the layers of SPT/LSA: shifted.py, attention.py, windows.py of layers/',
    'models/test_contract.py': 'the demands of timm on every family',
    'publish/test_hub_client.py': 'huggingface_hub and the Hub of the tests',
    'training/test_every_recipe.py': 'recipes/, all of them, by the loop of training/',
    'training/test_multi_label.py': 'training/train.py with several labels an image',
    'training/test_joint_runs.py': 'training/train.py with MoCo v3 and self-distillation',
    'training/test_pretraining.py': 'training/train.py without labels',
}
FILES = sorted((ROOT / 'tinyvit_zoo').rglob('*.py'))


def python(*args: str) -> str:
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    """No training, plotting or test library comes along that timm does not bring itself."""
    code = 'import timm, sys; before = set(sys.modules); import tinyvit_zoo; print(*set(sys.modules) - before)'
    added = {name.partition('.')[0] for name in python('-c', code).split()}
    assert not added & {'matplotlib', 'sklearn', 'pytest', 'tensorboard', 'onnx', 'fvcore', 'pandas', 'scipy'}
    assert 'tinyvit_zoo.cli.main' not in added


def test_files_and_functions_are_short() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding='utf-8') for path in FILES}
    sizes = {name: text.count('\n') for name, text in texts.items()}
    assert {name: size for name, size in sizes.items() if size > 350} == {}
    functions = {f'{name}:{node.name}': node.end_lineno - node.lineno + 1
                 for name, text in texts.items() for node in ast.walk(ast.parse(text))
                 if isinstance(node, ast.FunctionDef) and node.end_lineno}
    assert {name: size for name, size in functions.items() if size > 50} == {}


def test_private_names_stay_in_their_module() -> None:
    """import-linter sees modules, not names."""
    imports = [(path.name, alias.name) for path in FILES for node in ast.walk(ast.parse(path.read_text('utf-8')))
               if isinstance(node, ast.ImportFrom) and (node.level or 'tinyvit_zoo' in str(node.module))
               for alias in node.names]
    assert [(file, name) for file, name in imports if name.startswith('_') and not name.startswith('__')] == []


def test_tests_lie_where_the_code_does() -> None:
    """tests/ROOM/test_FILE.py tests ROOM/FILE.py, or the folder as a whole: test_ROOM.py, test_ROOM_TOPIC.py.

    tests/fuzz is apart: it goes by formats of files and by commands.
    """
    paths = [(path, path.stem.removeprefix('test_'), path.parent.name) for path in (ROOT / 'tests').glob('*/test_*.py')
             if path.parent.name != 'fuzz']
    rooms = {room: ROOT / room if room == 'tools' else ROOT / 'tinyvit_zoo' / room for _, _, room in paths}
    astray = [f'{room}/{path.name}' for path, name, room in paths
              if name.partition('_')[0] != room and not (rooms[room] / f'{name}.py').exists()]
    assert sorted(set(astray) - ELSEWHERE.keys()) == []


def test_the_readme_is_short_and_the_cards_speak_of_every_model() -> None:
    readme, cards = ((ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'MODEL_CARDS.md'))
    assert readme.count('\n') <= 150
    assert all(f'`{name}' in cards for name in tinyvit_zoo.list_models())


def test_forms_and_workflows_can_be_read() -> None:
    yaml = pytest.importorskip('yaml')
    found = [yaml.safe_load(path.read_text('utf-8')) for path in (*ROOT.glob('.github/*/*.yml'), ROOT / 'CITATION.cff')]
    assert len(found) == 6 and all(found)
    assert found[-1]['version'] == tinyvit_zoo.__version__


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built by way of the sdist, as a release is, with metadata that PyPI takes."""
    python('-m', 'build', '--outdir', str(tmp_path), '.')
    if importlib.util.find_spec('twine'):
        python('-m', 'twine', 'check', '--strict', *map(str, tmp_path.iterdir()))
    wheel = next(tmp_path.glob('*.whl'))
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size < 60e6
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'tinyvit_zoo'}
    wanted = ('py.typed', 'SHA256SUMS', 'weights/catalogue.json', 'data/classes.json', '_startup.py',
              'models/compact.py', 'weights/README.md', 'weights/cct_2_3x2.digits.safetensors',
              'weights/cct_2_3x2.digits.jsonl')
    assert all(f'tinyvit_zoo/{name}' in names for name in wanted)


@pytest.mark.slow
def test_pictures_of_the_documents_can_be_made(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    pytest.importorskip('sklearn')
    python('tools/plot_spt_lsa.py', '--out', str(tmp_path))
    shown = {path.name for path in (ROOT / 'docs' / 'images').glob('*.png')}
    made = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert made.keys() <= shown and len(made) == 2 and all(20_000 < size < 200_000 for size in made.values())
