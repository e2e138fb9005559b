"""Damaged files of a run directory, and any JSON in their place: a line, or what they said before."""
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import JSON, cases, command, damaged, outcome
from hypothesis import given, strategies as st

from tinyvit_zoo.recipes import PRETRAININGS, RECIPES
from tinyvit_zoo.runtime.documents import read_document, write_document
from tinyvit_zoo.training.own import finetuning_recipe
from tinyvit_zoo.training.run_dir import Run, read_log
from tinyvit_zoo.weights.resolve import read_recipe, read_result, resolve

FACTS = {'data': {'source': 'digits', 'images': 90, 'labels': 'abc'}, 'val_fraction': 0., 'fraction': 0.5,
         'processes': 1, 'precision': 'auto', 'compile': False, 'machine': {}}
RECIPE = {'recipe': dataclasses.asdict(RECIPES['cct_2_3x2.c10']), **FACTS}
FIRST = {'recipe': dataclasses.asdict(next(iter(PRETRAININGS.values()))), **FACTS}
RESULT = {'weights': 'cct_2_3x2.c10', 'figures': {'test': {'top1': 50., 'images': 40, 'loss': 1.5}}, 'pflop': 0.1,
          'command': 'tinyvit-zoo train', 'machine': {}}
ROWS = [{'epoch': epoch, 'step': 6 * epoch, 'lr': 1e-3, 'train_loss': 1 / epoch, 'seconds': 1.5} for epoch in (1, 2, 3)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('run')


@cases(150)
@given(data=st.data())
def test_documents_with_a_digest(data: st.DataObject, folder: Path) -> None:
    """Recipe and result: a line, or the same content."""
    name, content, read = data.draw(st.sampled_from([
        ('recipe.json', RECIPE, read_recipe), ('recipe.json', FIRST, read_recipe),
        ('result.json', RESULT, read_result)]))
    write_document(folder / name, content)
    before: Any = read(folder)
    (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    found, message = outcome(lambda: read(folder))
    assert message or found == before


def test_a_result_that_has_lost_its_end(folder: Path) -> None:
    """With the digest, so that it might be one of earlier versions."""
    write_document(folder / 'result.json', RESULT)
    content = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').write_text(json.dumps({key: content[key] for key in ('weights', 'figures', 'command')}))
    assert 'machine is missing' in outcome(lambda: read_result(folder))[1]


@cases(80)
@given(data=st.data())
def test_the_log(data: st.DataObject, folder: Path) -> None:
    """A line, or rows that can be drawn. (What a resumed run logs comes from its checkpoint.)"""
    run = Run(folder, quiet=True)
    run.rewind(ROWS)
    (folder / 'log.jsonl').write_bytes(data.draw(damaged((folder / 'log.jsonl').read_bytes())))
    found, message = outcome(lambda: read_log(folder))
    assert message or [row['epoch'] for row in found or []] == list(range(1, 1 + len(found or [])))


@cases(80)
@given(data=st.data())
def test_any_json_as_a_recipe(data: st.DataObject, folder: Path) -> None:
    """Of one field, of all, or as the whole file; without a digest, as earlier versions wrote it."""
    content = json.loads(json.dumps(data.draw(st.sampled_from([RECIPE, FIRST]))))
    value, where = data.draw(JSON), data.draw(st.sampled_from(['field', 'fact', 'recipe', 'all']))
    if where == 'field':
        content['recipe'][data.draw(st.sampled_from(sorted(content['recipe'])))] = value
    elif where == 'fact':
        content[data.draw(st.sampled_from(sorted(content)))] = value
    else:
        content = value if where == 'all' else {**content, 'recipe': value}
    (folder / 'recipe.json').write_text(json.dumps(content))
    (folder / 'weights.safetensors').touch()
    for use in (resolve, lambda path: finetuning_recipe(start=str(path))):
        outcome(lambda use=use: use(folder))   # type: ignore[misc]


@cases(30)
@given(value=JSON, key=st.sampled_from(['figures', 'test', 'top1', '']))
def test_any_json_as_a_result(value: Any, key: str, folder: Path) -> None:
    write_document(folder / 'recipe.json', RECIPE)
    content = {'': value, 'figures': {'figures': value}, 'test': {'figures': {'test': value}},
               'top1': {'figures': {'test': {'top1': value}}}}[key]
    (folder / 'result.json').write_text(json.dumps(content))
    code, _ = command('plot-fractions', str(folder), '--output', str(folder / 'a.png'))
    assert code == 2    # of one fraction alone, at best


def test_what_is_no_file_of_that_kind(tmp_path: Path) -> None:
    """Neither deep nesting nor a file that never ends is followed."""
    for content in ('[' * 100_000, '{"recipe": ' * 50_000, '9' * 10_000, '"\\ud800"', '\0', 'NaN'):
        (tmp_path / 'a').write_text(content)
        assert outcome(lambda: read_document(tmp_path / 'a', {'a': str}, 'fix it'))[1]
    write_document(tmp_path / 'a', {'a': 'x'})
    (tmp_path / 'a').write_text((tmp_path / 'a').read_text().replace('sha256', 'shA256'))
    assert outcome(lambda: read_document(tmp_path / 'a', {'a': str}, 'fix it'))[1]
    (tmp_path / 'b').symlink_to('/dev/zero')
    assert outcome(lambda: read_document(tmp_path / 'b', {'a': str}, 'fix it'))[1]
