"""ONNX files of a repository give the model's classes, through onnxruntime and transformers.js."""
import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from browser import ARGS, CHROMIUM
from PIL import Image

from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.publish import demo
from tinyvit_zoo.publish.export import load_exported
from tinyvit_zoo.publish.hub import build_repository
from tinyvit_zoo.weights import catalogue

NAME = 'cct_2_3x2.digits'
MODULES = Path(__file__).parents[2] / 'node_modules'


@pytest.fixture(scope='module')
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ('onnxruntime', 'onnxscript', 'sklearn'):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp('models') / 'org' / NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('tinyvit_zoo.training.run_dir.Run.draw', lambda run: (run.folder / 'curves.png').touch())
        assert build_repository(catalogue()[NAME], f'org/{NAME}', folder, open_source('digits')) == ''
    return folder


def prepared(folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return example images as the model takes them, and its probabilities."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(Image.open(folder / name).convert('RGB')) for name in names])
    with torch.inference_mode():
        return images, model(images).softmax(1)


def test_both_files_give_the_models_classes_and_the_card_has_their_figures(repository: Path) -> None:
    names = sorted(path.relative_to(repository).as_posix() for path in repository.glob('examples/?.png'))
    assert names == [f'examples/{i}.png' for i in range(8)]
    images, wanted = prepared(repository, names)
    card = (repository / 'README.md').read_text(encoding='utf-8')
    for file, tolerance in (('model.onnx', 1e-5), ('model_quantized.onnx', 0.05)):
        path = repository / 'onnx' / file
        torch.testing.assert_close(load_exported(path)(images).softmax(1), wanted, rtol=0, atol=tolerance)
        assert wanted.argmax(1).tolist() == list(range(8))
        row = next(line for line in card.splitlines() if f'`onnx/{file}`' in line)
        assert hashlib.sha256(path.read_bytes()).hexdigest() in row
        assert 98 < float(row.split('|')[3]) <= 100     # 8 bits are rounded by another rule on other CPUs
        assert str(Path(demo.__file__).parents[1]).encode() not in path.read_bytes()     # no path of this machine
    assert (repository / 'onnx' / 'model_quantized.onnx').stat().st_size < 0.35e6


def test_without_the_extra_it_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.setattr(
        'tinyvit_zoo.training.run_dir.Run.draw', lambda run: (run.folder / 'curves.png').touch())
    without = build_repository(catalogue()[NAME], f'org/{NAME}', tmp_path / NAME)
    assert without.startswith(' without onnx/: ') and "pip install 'tinyvit-zoo[export]'" in without
    assert not (tmp_path / NAME / 'onnx').exists() and '## ONNX' not in (tmp_path / NAME / 'README.md').read_text()


PAGE = '''<!doctype html><meta charset="utf-8"><script type="module">
import * as library from './transformers/transformers.min.js';
const {AutoImageProcessor, AutoModel, ImageClassificationPipeline, env, pipeline} = library;
Object.assign(env, {localModelPath: '/', allowLocalModels: true, allowRemoteModels: false, useBrowserCache: false});
env.backends.onnx.wasm.wasmPaths = `${location.origin}/ort/`;
window.tried = async (id, dtype, images) => {
  const processor = await AutoImageProcessor.from_pretrained(id);
  const model = await AutoModel.from_pretrained(id, {dtype, device: 'wasm'});
  const classify = new ImageClassificationPipeline({task: 'image-classification', model, processor});
  return Promise.all(images.map(image => classify(`/${image}`, {top_k: null})));
};
window.refused = id => pipeline('image-classification', id, {device: 'wasm'}).then(() => '', error => error.message);
document.documentElement.dataset.ready = 'true';
</script>'''


@pytest.mark.slow
def test_transformers_js_classifies_in_a_browser(repository: Path) -> None:
    sync_api = pytest.importorskip('playwright.sync_api')
    package, root, names = MODULES / '@huggingface' / 'transformers', repository.parents[1], []
    if not CHROMIUM or not package.is_dir():
        pytest.skip('needs chromium, and `npm install --ignore-scripts @huggingface/transformers` in the repository')
    (root / 'transformers').symlink_to(package / 'dist')
    (root / 'ort').symlink_to(MODULES / 'onnxruntime-web' / 'dist')
    (root / 'index.html').write_text(PAGE)
    for i in range(8):      # at the size of the model: the browser's canvas resizes otherwise
        names.append(f'examples/{i}_16.png')
        Image.open(repository / f'examples/{i}.png').convert('RGB').resize((16, 16), 3).save(repository / names[-1])
    _, wanted = prepared(repository, names)
    with demo.serving(root, 0) as server, sync_api.sync_playwright() as play:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page()
        page.goto(f'http://127.0.0.1:{server.server_port}/index.html')
        page.wait_for_selector('html[data-ready]', state='attached')

        def found(dtype: str, images: list[str]) -> list[list[dict[str, Any]]]:
            paths = [f'org/{NAME}/{each}' for each in images]
            return page.evaluate('args => tried(...args)', [f'org/{NAME}', dtype, paths])
        for dtype, tolerance in (('fp32', 1e-3), ('q8', 0.05)):
            for guesses, probabilities in zip(found(dtype, names), wanted, strict=True):
                told = torch.tensor([score for _, score in sorted((int(g['label']), g['score']) for g in guesses)])
                torch.testing.assert_close(told, probabilities, rtol=0, atol=tolerance)
        small = found('fp32', [f'examples/{i}.png' for i in range(8)])
        assert [guesses[0]['label'] for guesses in small] == list('01234567')
        assert 'Unsupported model type' in page.evaluate('id => refused(id)', f'org/{NAME}')   # docs/export.md says so
        browser.close()
        server.shutdown()


def test_what_transformers_js_reads_is_there(repository: Path) -> None:
    told = json.loads((repository / 'preprocessor_config.json').read_text())
    assert told['size'] == {'shortest_edge': 16} and told['crop_size'] == {'height': 16, 'width': 16}
    assert 'image_processor_type' not in told       # transformers would take that class rather than timm's transform
    config = json.loads((repository / 'config.json').read_text())
    assert config['id2label'] == {str(i): str(i) for i in range(10)}
