"""The demo's page in a real browser: what it shows is what the models give. Preprocessing under node, to the bit."""
import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import timm
import torch
from browser import ARGS, CHROMIUM
from PIL import Image
from timm.data import create_transform

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.data.cache import cache_folder
from tinyvit_zoo.data.channels import as_channels
from tinyvit_zoo.interpret.attention import attention_maps, pooling_weights
from tinyvit_zoo.measure.prediction import classify, load_classifier
from tinyvit_zoo.publish import demo
from tinyvit_zoo.publish.export import load_exported
from tinyvit_zoo.runtime import packaged
from tinyvit_zoo.weights import save_weights
from tinyvit_zoo.weights.resolve import resolve

PAGE = packaged.PACKAGE / demo.PAGE
RUNTIME = cache_folder().parent / f'onnxruntime-web-{demo.RUNTIME}'
THREE = [(90, 60), (150, 40), (200, 70), (190, 115), (140, 135), (195, 155), (205, 205), (150, 240), (85, 215)]
needs_node = pytest.mark.skipif(not shutil.which('node'), reason='needs node')


def picture(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """Make a picture with edges and smooth parts."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (3 + 2 * c) + seed) * np.cos(y / (5 + c)) for c in range(channels)], -1)
    pixels = (127 + 100 * waves + 28 * ((x // 9 + y // 7) % 2)[..., None]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


# -- preprocessing -----------------------------------------------------------------------------------------------------
CASES = [   # size of the image, then what timm takes
    ((8, 8), dict(input_size=(3, 16, 16), interpolation='bicubic', crop_pct=1.)),
    ((333, 250), dict(input_size=(3, 32, 32), interpolation='bicubic', crop_pct=0.9)),
    ((250, 333), dict(input_size=(3, 224, 224), interpolation='bicubic', crop_pct=0.875)),
    ((97, 201), dict(input_size=(1, 28, 28), interpolation='bilinear', crop_pct=0.95)),
    ((64, 50), dict(input_size=(3, 32, 48), interpolation='lanczos', crop_pct=0.9)),
    ((64, 50), dict(input_size=(3, 33, 33), interpolation='bicubic', crop_pct=0.9, crop_mode='squash')),
    ((61, 120), dict(input_size=(3, 32, 32), interpolation='hamming', crop_pct=0.95, crop_mode='border')),
    ((200, 31), dict(input_size=(3, 40, 40), interpolation='bicubic', crop_pct=1., crop_mode='border')),
]
SCRIPT = '''
import {readFileSync} from 'fs';
const {preprocess} = await import(process.argv[1]);
for (const {data, ...rest} of JSON.parse(readFileSync(0, 'utf8'))) {
  const image = {data: Buffer.from(data, 'base64'), width: rest.width, height: rest.height, channels: 4};
  console.log(Buffer.from(preprocess(image, rest.transform).tensor.buffer).toString('base64'));
}
'''


@needs_node
def test_preprocessing_is_timms_to_the_bit() -> None:
    images, given, expected = [picture(*size) for size, _ in CASES], [], []
    for image, (_, case) in zip(images, CASES, strict=True):
        channels = case['input_size'][0]
        cfg = {'crop_mode': 'center', **case, 'mean': (0.3, 0.4, 0.5)[:channels], 'std': (0.21, 0.2, 0.3)[:channels]}
        expected.append(create_transform(**cfg, is_training=False)(as_channels(image, channels)))
        given.append({'data': base64.b64encode(image.convert('RGBA').tobytes()).decode(), 'width': image.width,
                      'height': image.height, 'transform': cfg})
    result = subprocess.run(
        ['node', '--input-type=module', '-e', SCRIPT, (PAGE / 'preprocess.js').as_uri()],
        input=json.dumps(given), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    level = 0. if PIL.__version__ >= '13' else 5 / 255   # before 13 tall images were resized in the other order
    for line, tensor, case in zip(result.stdout.split(), expected, CASES, strict=True):
        found = torch.frombuffer(bytearray(base64.b64decode(line)), dtype=torch.float32).view_as(tensor)
        assert (found - tensor).abs().max() <= level, case


@pytest.mark.skipif(not shutil.which('tsc'), reason="needs TypeScript's tsc")
def test_the_pages_types_hold() -> None:
    command = ['tsc', '--checkJs', '--allowJs', '--noEmit', '--strict', '--target', 'es2022', '--module', 'es2022',
               '--lib', 'es2022,dom,dom.iterable', *map(str, PAGE.glob('*.js'))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_files_of_the_page() -> None:
    found = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob('*') if path.is_file()}
    assert found == {*demo.FILES, *(f'examples/{name}.png' for name in demo.DRAWN)}


def test_a_page_that_is_not_whole_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PAGE, tmp_path / 'package/publish/page')
    shutil.copy(packaged.PACKAGE / 'SHA256SUMS', tmp_path / 'package')
    monkeypatch.setattr(packaged, 'PACKAGE', tmp_path / 'package')
    for name in ('examples/frog.png', 'preprocess.js'):
        (tmp_path / 'package/publish/page' / name).unlink()
        with pytest.raises(ZooError, match=f'{name} cannot be read .*: reinstall tinyvit_zoo'):
            demo.make_demo(['cct_2_3x2.c10'], tmp_path / 'demo')
        assert not (tmp_path / 'demo').exists()


# -- the page ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViT with random weights, a temperature and several labels an image."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'several.safetensors'
    model = timm.create_model('vit_lite_2_4', num_classes=12)
    torch.nn.init.normal_(model.head.weight)
    save_weights(model.state_dict(), path, {
        'pretrained_cfg': json.dumps({'num_classes': 12, 'input_size': [3, 32, 32], 'mean': [0.1, 0.2, 0.3],
                                      'std': [0.5, 0.6, 0.7], 'crop_pct': 0.9, 'interpolation': 'bicubic'}),
        'readout': json.dumps({'temperature': 2.5, 'multi_label': True})})
    return f'vit_lite_2_4={path}'


@pytest.fixture(scope='module')
def folder(several: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of both models, for tests in a browser; they skip where something for it is missing."""
    pytest.importorskip('playwright')
    for library in ('onnxruntime', 'onnxscript', 'sklearn'):
        pytest.importorskip(library)
    if not CHROMIUM:
        pytest.skip('needs chromium')
    if not demo.is_whole(RUNTIME):
        pytest.skip('needs onnxruntime-web: `tinyvit-zoo demo cct_2_3x2.digits --output page --offline` fetches it')
    folder = tmp_path_factory.mktemp('demo') / 'page'
    assert main(['demo', 'cct_2_3x2.digits', several, '--output', str(folder), '--offline']) == 0
    return folder


@pytest.fixture(scope='module')
def said() -> list[str]:
    """What the browser's console says."""
    return []


@pytest.fixture(scope='module')
def page(folder: Path, said: list[str]) -> Iterator[Any]:
    """The loaded page, and no other host to be had."""
    from playwright.sync_api import sync_playwright
    with demo.serving(folder, 0) as server, sync_playwright() as play:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={'width': 390, 'height': 844})
        page.route('**/*', lambda route: route.continue_() if '127.0.0.1' in route.request.url else route.abort())
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.add_init_script('window.found = []; document.addEventListener("classified", e => found.push(e.detail))')
        page.goto(f'http://127.0.0.1:{server.server_port}/')
        page.wait_for_selector('body[data-ready]')
        yield page
        browser.close()
        server.shutdown()


def results(page: Any, act: Any) -> list[dict[str, Any]]:
    """Return what the page finds of the one image that `act` gives it."""
    page.evaluate('found.length = 0')
    act()
    while not page.evaluate('found.length'):    # the page's policy forbids `wait_for_function`, which evaluates text
        page.wait_for_timeout(20)
    return page.evaluate('found[0].results.map(r => ({...r, seen: null}))')


@pytest.fixture(scope='module')
def images(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp('images')
    made = {'wide.png': picture(333, 250), 'tall.png': picture(91, 200, seed=2), 'grey.png': picture(70, 70, 1)}
    for name, image in made.items():
        image.save(place / name)
    return [folder / 'examples' / '3.png', folder / 'examples' / '7.png', *(place / name for name in made)]


def test_probabilities_and_looks_are_pytorchs(page: Any, images: list[Path], several: str, said: list[str]) -> None:
    found = [results(page, lambda path=path: page.set_input_files('#files', str(path))) for path in images]
    for number, (name, weights) in enumerate([('cct_2_3x2.digits', None), several.split('=')]):
        model, labels, readout = load_classifier(resolve(f'{name}={weights}' if weights else name), 'cpu')
        guesses = classify(model, labels, images, len(labels), 32, readout)
        cfg = {key: timm.data.resolve_model_data_config(model)[key] for key in (
            'input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')}
        batch = torch.stack([create_transform(**cfg, is_training=False)(Image.open(path).convert('RGB'))
                             for path in images])
        looks = attention_maps(model, batch).rollout if number else pooling_weights(model, batch).maps
        assert looks is not None
        for i, top in enumerate(guesses):
            probabilities = torch.tensor(found[i][number]['probabilities'])
            assert top[0]['index'] == int(probabilities.argmax())
            wanted = torch.zeros(len(labels))
            for guess in top:
                wanted[guess['index']] = guess['probability']
            torch.testing.assert_close(probabilities, wanted, atol=1e-3, rtol=0)
            look = found[i][number]['look']
            assert look['dims'] == list(looks[i].shape)
            torch.testing.assert_close(torch.tensor(look['values']), looks[i].flatten(), atol=1e-4, rtol=0)
    rows = page.locator('article').nth(1).locator('li span:first-of-type').all_inner_texts()
    likely = [guess['label'] for guess in top if guess['probability'] > 0.5]
    assert rows == (likely or ['none above 50 %']) and page.locator('article').count() == 2
    assert said == []


def test_a_drawn_three_is_a_three(page: Any) -> None:
    page.click('#draw')
    box = page.locator('#paper').bounding_box()
    scale = box['width'] / 280

    def stroke() -> None:
        for i, (x, y) in enumerate(THREE):
            page.mouse.move(box['x'] + x * scale, box['y'] + y * scale, steps=3)
            if i == 0:
                page.mouse.down()
        page.mouse.up()
    digit = results(page, stroke)[0]
    assert int(np.argmax(digit['probabilities'])) == 3 and max(digit['probabilities']) > 0.5
    assert '3 by cct_2_3x2.digits' in page.inner_text('#status')
    page.click('#clear')
    page.click('#draw')


def test_a_text_file_is_one_sentence(page: Any, said: list[str]) -> None:
    page.evaluate('''() => {
      const transfer = new DataTransfer();
      transfer.items.add(new File(['no image'], 'notes.txt', {type: 'text/plain'}));
      document.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }''')
    page.wait_for_selector('#status.bad')
    text = page.inner_text('#status')
    assert text.startswith('notes.txt is no image') and text.count('.') == 2 and '\n' not in text and said == []


def test_the_webcam_and_the_switches(page: Any, said: list[str]) -> None:
    assert len(results(page, lambda: page.click('#camera'))) == 2
    page.click('#camera')
    assert page.locator('#video').is_hidden()
    assert len(results(page, lambda: page.locator('#models input').nth(1).uncheck())) == 1
    results(page, lambda: page.uncheck('#looks'))
    assert page.locator('article').count() == 1 and 'No attention map' not in page.inner_text('#results')
    assert said == []


def test_the_page_fits_a_phone_and_names_its_controls(page: Any) -> None:
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    nameless = page.evaluate('''[...document.querySelectorAll('button, input, canvas, img')].filter(e =>
      !(e.innerText || e.alt || e.ariaLabel || e.labels?.length || e.querySelector?.('img[alt]'))).map(e => e.id)''')
    assert nameless == []


def test_clients_that_leave_print_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with demo.serving(folder, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for request in ('GET /app.js HTTP/1.0', 'GET /%00 HTTP/1.0'):
            with socket.create_connection(('127.0.0.1', server.server_port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))     # resets when closed
                client.sendall(f'{request}\r\n\r\n'.encode())
                client.recv(1)
        server.shutdown()
    assert capfd.readouterr().err == ''


def test_forty_models_are_listed_with_their_sizes_and_loaded_on_demand(folder: Path, page: Any, tmp_path: Path) -> None:
    several = shutil.copytree(folder, tmp_path / 'page')
    told = json.loads((several / 'models.json').read_text(encoding='utf-8'))
    told['models'] = [{**told['models'][i % 2], 'title': f'model {i}'} for i in range(40)]
    (several / 'models.json').write_text(json.dumps(told), encoding='utf-8')
    with demo.serving(several, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        other = page.context.browser.new_page(viewport={'width': 390, 'height': 844})
        other.goto(f'http://127.0.0.1:{server.server_port}/')
        other.wait_for_selector('body[data-ready]')
        labels = other.locator('#models label').all_inner_texts()
        assert len(labels) == 40 and all(label.endswith(' MB)') for label in labels)
        assert other.locator('article').count() == other.locator('#models input:checked').count() == 3
        assert other.locator('#results').bounding_box()['y'] < 844     # the list does not push the results away
        other.locator('#models input').nth(39).check()
        other.wait_for_selector('article:nth-of-type(4)')
        assert other.evaluate('document.documentElement.scrollWidth <= innerWidth')
        other.close()
        server.shutdown()


def test_another_size(several: str, tmp_path: Path) -> None:
    for library in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(library)
    assert main(['demo', several, '--output', str(tmp_path / 'page'), '--img-size', '16']) == 0
    told, = json.loads((tmp_path / 'page' / 'models.json').read_text())['models']
    assert told['input_size'] == [3, 16, 16]
    assert load_exported(tmp_path / 'page' / told['file'])(torch.zeros(1, 3, 16, 16)).shape == (1, 12)


def test_the_folder_is_a_space(folder: Path) -> None:
    import yaml
    _, head, _ = (folder / 'README.md').read_text(encoding='utf-8').split('---\n', 2)
    facts = yaml.safe_load(head)
    assert facts['sdk'] == 'static' and facts['custom_headers'] == demo.HEADERS
    told = json.loads((folder / 'models.json').read_text(encoding='utf-8'))
    assert [model['multi_label'] for model in told['models']] == [False, True]
    assert [model['digit'] and model['digit']['side'] for model in told['models']] == [8, None]
    for model in told['models']:
        assert demo.integrity(folder / model['file']) == model['integrity']


# -- mistakes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('models', 'said'), [
    (['cct_2_3x9'], 'Did you mean cct_2_3x2'),
    (['ssl_vit.hananshafi_c10_selfdistill'], 'has no classes to show'),
    (['cct_2_3x2.digits', 'cct_2_3x2.digits'], 'is given twice'),
    (['no/such/run'], 'no/such/run'),
    (['vit_lite_2_4.untrained', '--img-size', '2'], '(2, 2) pixels are too few'),
])
def test_a_mistake_is_one_line_and_leaves_nothing(
        models: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    assert main(['demo', *models, '--output', str(tmp_path / 'page')]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and not out and not any(tmp_path.iterdir())


def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'thesis.tex').write_text('years of work')
    (tmp_path / 'models.json').write_text('{"made_by": "tinyvit_zoo"}')
    assert main(['demo', 'cct_2_3x2.digits', '--output', str(tmp_path)]) == 2
    assert 'holds other files (thesis.tex)' in capsys.readouterr().err
    (tmp_path / 'models.json').unlink()
    os.mkfifo(tmp_path / 'models.json')     # which reading would wait for
    assert main(['demo', 'cct_2_3x2.digits', '--output', str(tmp_path)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ['models.json', 'thesis.tex']


def test_without_the_extra_the_command_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert main(['demo', 'cct_2_3x2.digits', '--output', str(tmp_path / 'page')]) == 2
    assert "pip install 'tinyvit-zoo[export]'" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_without_npm_the_command_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('shutil.which', lambda name: None)
    assert main(['demo', 'cct_2_3x2.digits', '--output', str(tmp_path / 'page'), '--offline']) == 2
    assert 'install Node.js' in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_size_that_does_not_fit_is_one_line(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'w.safetensors'
    save_weights(timm.create_model('vit_lite_2_4', num_classes=3).state_dict(), path, {'pretrained_cfg': json.dumps(
        {'num_classes': 3, 'input_size': [3, 2, 2]})})
    assert main(['demo', f'vit_lite_2_4={path}', '--output', str(tmp_path / 'page')]) == 2
    err = capsys.readouterr().err
    assert '(2, 2) pixels are too few' in err and err.count('\n') == 1
    assert [each.name for each in tmp_path.iterdir()] == ['w.safetensors']
