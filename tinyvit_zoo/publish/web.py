"""What a repository on the Hub has for onnxruntime and transformers.js: onnx/ and preprocessor_config.json."""
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.sources import Source
from ..errors import ZooError
from ..measure.bench import Bench
from ..runtime.world import World
from ..weights import Weight
from ..weights.resolve import resolve
from .export import CALIBRATION, calibration_images, compare, export, load_exported, quiet
from .formats import FORMATS, rename_input
from .int8 import quantize

_INPUT = 'pixel_values'     # as transformers.js and optimum name it
_RESAMPLE = {'nearest': 0, 'lanczos': 1, 'bilinear': 2, 'bicubic': 3, 'box': 4, 'hamming': 5}     # Pillow's numbers
_SECTION = '''## ONNX

`onnx/` is for onnxruntime and transformers.js: `{input}` [batch, {size}], normalized as above, to `logits`. Checked
against the model.{calibrated}

{table}
```js
import {AutoImageProcessor, AutoModel, ImageClassificationPipeline} from '@huggingface/transformers';

const processor = await AutoImageProcessor.from_pretrained('{repo_id}');
const model = await AutoModel.from_pretrained('{repo_id}', {dtype: '{dtype}'});
const classify = new ImageClassificationPipeline({task: 'image-classification', model, processor});
console.log(await classify('image.png'));
```

`pipeline()` of transformers.js does not support timm's models, so use these three classes. Browsers resize by the
canvas, not like timm: give images of {pixels} pixels for the same probabilities.
'''


def write_for_the_web(weight: Weight, config: Mapping[str, Any], repo_id: str, folder: Path,
                      source: Source | None) -> tuple[str, str]:
    """Write onnx/ and preprocessor_config.json; return their section of the card, and what was left out and why.

    `source`: what the weights were trained on, to calibrate 8 bits by.
    """
    if weight.encoder:      # transformers.js would take its features for logits
        return '', ''
    try:
        FORMATS['.onnx'].require()
    except ZooError as e:
        return '', f' without onnx/: {e}'
    facts = _write_onnx(weight, folder / 'onnx', source)
    write_preprocessing(config, folder)
    return _section(weight, repo_id, facts), '' if source else (
        f' without onnx/model_quantized.onnx: --data {weight.data.spec} calibrates it')


def _write_onnx(weight: Weight, folder: Path, source: Source | None) -> list[dict[str, Any]]:
    """Write the model in float32 and, with `source`, in 8 bits; return the facts of each file."""
    loaded = resolve(weight.name).load()
    folder.mkdir()
    whole, small = folder / 'model.onnx', folder / 'model_quantized.onnx'
    export(loaded.model, loaded.cfg['input_size'], whole)
    bench = Bench(loaded, source, 'test', World(0, 1, torch.device('cpu')), None, 64) if source else None
    if bench:
        bench.check_classes()
        shutil.copyfile(whole, small)
        with quiet():
            quantize(small, calibration_images(bench))
    facts = []
    for file in (whole, small) if bench else (whole,):
        rename_input(file, _INPUT)
        content = file.read_bytes()
        facts.append({'file': f'{folder.name}/{file.name}', 'bytes': len(content),
                      'sha256': hashlib.sha256(content).hexdigest(),
                      'measured': compare(bench, load_exported(file), strict=file == whole) if bench else None})
    return facts


def _section(weight: Weight, repo_id: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """Return the card's section on the ONNX files."""
    measured = facts[0]['measured']
    title = f'top-1, {measured["images"]:,} test images' if measured else ''
    top1 = [f'{fact["measured"]["top1"]:.2f}' if measured else '' for fact in facts]
    rows = ''.join(f'| `{fact["file"]}` | {fact["bytes"] / 1e6:.2f} | {figure} | `{fact["sha256"]}` |\n'
                   for fact, figure in zip(facts, top1, strict=True))
    text = _SECTION
    for key, value in {
            'input': _INPUT, 'size': ', '.join(map(str, weight.input_size)), 'repo_id': repo_id,
            'calibrated': f' The 8-bit file is calibrated on {CALIBRATION} training images.' if facts[1:] else '',
            'table': f'| file | MB | {title} | sha256 |\n|---|---|---|---|\n{rows}',
            'dtype': 'q8' if facts[1:] else 'fp32', 'pixels': ' x '.join(map(str, weight.input_size[1:]))}.items():
        text = text.replace(f'{{{key}}}', str(value))
    return text


def write_preprocessing(config: Mapping[str, Any], folder: Path) -> None:
    """Write preprocessor_config.json for transformers.js, from timm's config.

    transformers (Python) reads this file before config.json: it has both for it.
    """
    cfg = config['pretrained_cfg']
    height, width = cfg['input_size'][1:]
    content = {
        'architecture': config['architecture'], 'pretrained_cfg': cfg,
        'do_resize': True, 'size': {'shortest_edge': math.floor(min(height, width) / cfg['crop_pct'])},
        'resample': _RESAMPLE[cfg['interpolation']], 'do_center_crop': True,
        'crop_size': {'height': height, 'width': width}, 'do_rescale': True, 'rescale_factor': 1 / 255,
        'do_normalize': True, 'image_mean': cfg['mean'], 'image_std': cfg['std']}
    (folder / 'preprocessor_config.json').write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
