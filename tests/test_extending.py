"""docs/extending.md does what it says: its code is installed beside the package, and its commands run."""
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import documents
import pytest
from documents import ROOT

PAGE = documents.pages()['extending.md']
FILES = documents.files(PAGE)
COMMANDS = [' '.join(argv[1:]) for block in documents.blocks(PAGE) if block.language == 'sh'
            for argv in documents.commands(block)]
RUN = '''
import contextlib, io, json, sys
from tinyvit_zoo.cli.main import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(line.split())
    print(json.dumps([line.strip(), [code, out.getvalue(), err.getvalue()]]), flush=True)
'''


def install(site: Path) -> None:
    """Write the page's package as pip would, with one broken plugin more."""
    for name, code in FILES.items():
        if name.endswith('.py'):
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_text(code, encoding='utf-8')
    info = site / 'my_zoo-0.1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: my-zoo\nVersion: 0.1\n', encoding='utf-8')
    groups = re.sub(r"project\.entry-points\.'(.*)'", r'\1', FILES['pyproject.toml']).replace("'", '')
    broken = groups.replace('[tinyvit_zoo.plugins]', '[tinyvit_zoo.plugins]\nbroken = my_zoo.broken')
    (info / 'entry_points.txt').write_text(broken, encoding='utf-8')


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """(exit code, stdout, stderr) of each command of the page, and of two that must fail, from one process."""
    site = tmp_path_factory.mktemp('site')
    install(site)
    lines = '\n'.join([*COMMANDS, 'width resnet0', 'recipes toy_vit.stripe', ''])
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, '-c', RUN], input=lines, cwd=site, capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': ''})
    assert not done.returncode, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines()) | {'runs': site / 'runs'}


def test_every_addition_takes_a_file_and_a_line() -> None:
    assert Counter(Path(name).suffix for name in FILES) == {'.py': 5, '.toml': 1}
    assert all(len(code.splitlines()) < 30 for code in FILES.values())
    assert FILES['pyproject.toml'].count("= 'my_zoo.") == 5


def test_every_command_of_the_page_works(results: dict[str, Any]) -> None:
    assert [results[line] for line in COMMANDS if results[line][0]] == []


def test_family(results: dict[str, Any]) -> None:
    assert 'toy_vit' in results['list toy'][1]
    assert 'toy_vit' in results['count toy_vit'][1]
    assert 'toy_vit' in results['analyze support toy_vit'][1]


def test_dataset_and_recipe_train_weights(results: dict[str, Any]) -> None:
    """What the recipe makes tells lying stripes from standing ones, and knows their names."""
    assert 'Twelve epochs' in results['recipes toy_vit.stripes'][1]
    result = json.loads((results['runs'] / 'recipe' / 'result.json').read_text(encoding='utf-8'))
    assert result['figures']['test']['top1'] > 80
    assert 'stripes, test images' in results['eval runs/recipe --data stripes'][1]


def test_method_makes_an_encoder(results: dict[str, Any]) -> None:
    recipe = json.loads((results['runs'] / 'rotation' / 'recipe.json').read_text(encoding='utf-8'))
    assert recipe['recipe']['method'] == 'rotation'
    assert (results['runs'] / 'tuned' / 'weights.safetensors').exists()


def test_command(results: dict[str, Any]) -> None:
    assert results['width toy_vit'][:2] == [0, '32\n']
    assert results['width resnet0'][0] == 2 and "There is no model 'resnet0'." in results['width resnet0'][2]


def test_names_of_plugins_are_suggested(results: dict[str, Any]) -> None:
    assert 'Did you mean toy_vit.stripes' in results['recipes toy_vit.stripe'][2]


def test_a_broken_plugin_is_named_and_passed_over(results: dict[str, Any]) -> None:
    lines = results['list toy'][2].splitlines()
    assert len(lines) == 1 and 'my_zoo.broken' in lines[0] and 'ModuleNotFoundError' in lines[0]
