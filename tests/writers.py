"""Commands that write files, with converters that take no time: what is tried is how the files appear."""
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.publish import demo, formats, hub
from tinyvit_zoo.weights import convert

MODEL = 'cct_2_3x2.untrained'
COMMANDS = {    # those that are tried by default first
    'demo': ['demo', MODEL, '--output', 'OUT/page'], 'xml': ['export', MODEL, 'OUT/a.xml'],
    'onnx': ['export', MODEL, 'OUT/a.onnx'], 'mlpackage': ['export', MODEL, 'OUT/a.mlpackage'],
    'publish': ['publish', 'cct_2_3x2.digits', '--namespace', 'me', '--dry-run', '--output', 'OUT/hub'],
    'convert': ['convert', 'FILE', 'OUT/new.safetensors']}


def write(model: Any, input_size: Any, path: Path, any_size: bool) -> None:
    if path.suffix == '.mlpackage':
        (path / 'Data').mkdir(parents=True)
        path = path / 'Data' / 'weights'
    for each in (path, path.with_suffix('.bin'))[:1 + (path.suffix == '.xml')]:
        each.write_bytes(b'a')


def write_page(loaded: Any, path: Path) -> tuple[str, list[float]]:
    path.write_bytes(b'a')
    return '', []


def build(weight: Any, repo_id: str, folder: Path, source: Any) -> str:
    folder.mkdir(parents=True)
    for name in ('model.safetensors', 'config.json'):
        (folder / name).write_bytes(b'a')
    return ''


if __name__ == '__main__':
    formats.FORMATS.update({suffix: replace(form, write=write, load=None, packages=())
                            for suffix, form in formats.FORMATS.items()})
    demo._export, hub.build_repository = write_page, build
    if sys.argv[1] != 'convert':
        sys.exit(main(sys.argv[1:]))
    try:
        convert(*sys.argv[2:])
    except ZooError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
