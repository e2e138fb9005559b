"""`tinyvit-zoo info`: one model and its weights."""
import argparse
import dataclasses
import json
import textwrap
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from ..measure.prediction import label_names
from ..models import with_tag
from ..weights import url_cache, weight_of
from ..weights.fetch import read_note

NAME = 'info'
SUMMARY = 'describe a model and its weights'
EXAMPLES = 'tinyvit-zoo info cct_7_3x1'


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', metavar='NAME[.TAG]', help='without TAG: the default weights, as with pretrained=True')
    parser.add_argument('--json', action='store_true', help='print JSON, with more fields')


def run(args: argparse.Namespace) -> str:
    record = describe(with_tag(args.model))
    if args.json:
        return json.dumps(record, indent=2)
    lines = {**_model_lines(record), **_weight_lines(record['weights'])}
    width = max(map(len, lines)) + 2
    return '\n'.join(
        textwrap.fill(text, 120, initial_indent=f'{title:{width}}', subsequent_indent=' ' * width,
                      break_long_words=False, break_on_hyphens=False)
        for title, text in lines.items() if text)


def describe(name: str) -> dict[str, Any]:
    """Return all that is known of `NAME.TAG`, as --json prints it."""
    cfg: Any = get_pretrained_cfg(name)
    tags = [other.tag for other in get_arch_pretrained_cfgs(cfg.architecture).values()]
    weight = weight_of(cfg)
    note = read_note(url_cache(weight.url)) if weight and weight.url else None
    return {
        'name': name, 'architecture': cfg.architecture, 'tag': cfg.tag, 'default_tag': tags[0], 'tags': tags,
        'parameters': sum(p.numel() for p in timm.create_model(name, device='meta').parameters()),
        'input_size': cfg.input_size, 'mean': cfg.mean, 'std': cfg.std, 'crop_pct': cfg.crop_pct,
        'interpolation': cfg.interpolation, 'num_classes': cfg.num_classes, 'label_names': label_names(cfg.to_dict()),
        'paper': f'{cfg.paper_name} ({cfg.paper_ids})', 'licence': cfg.license,
        'weights': weight and {
            'kind': 'package' if weight.file else 'Hub' if weight.hf_hub_id else 'URL', 'source': weight.source,
            'origin': weight.origin, 'dataset': weight.data.title, 'recipe': weight.recipe,
            'published': weight.published, 'measured': weight.measured, 'trained': weight.trained,
            'sha256': weight.sha256, 'sha256_at_first_use': note and dataclasses.asdict(note), 'note': weight.note}}


def _model_lines(record: dict[str, Any]) -> dict[str, str]:
    names, count = record['label_names'], record['num_classes']
    first = f': {"; ".join(names[:5])}{"; ..." if count > 5 else ""}' if names else ''
    return {
        'architecture': record['architecture'],
        'tag': record['tag'] + (' (the default)' if record['tag'] == record['default_tag'] else ''),
        'other tags': ', '.join(tag for tag in record['tags'] if tag != record['tag']),
        'parameters': f'{record["parameters"]:,}',
        'input': ' x '.join(map(str, record['input_size'])),
        **{key: ', '.join(f'{value:g}' for value in record[key]) for key in ('mean', 'std')},
        'resize': f'{record["interpolation"]}, crop_pct {record["crop_pct"]:g}',
        'classes': f'{count}{first}', 'paper': record['paper'], 'licence': record['licence']}


def _weight_lines(weights: dict[str, Any] | None) -> dict[str, str]:
    if not weights:
        return {'weights': 'none yet'}
    published, measured, trained = weights['published'], weights['measured'], weights['trained']
    first = weights['sha256_at_first_use']
    return {
        'weights': f'{weights["kind"]}: {weights["source"]}',
        'sha256': weights['sha256'] or (f'{first["sha256"]}, of the first download, on {first["date"]}' if first else
                                        'unknown until the first download'),
        'origin': weights['origin'], 'trained on': weights['dataset'], 'recipe': weights['recipe'],
        'published': f'{published["top1"]:.2f} % top-1 ({published["source"]})' if published else '',
        'measured': f'{measured["top1"]:.2f} % top-1 on {measured["on"]}, {measured["date"]}: {measured["command"]}'
                    if measured else '',
        'made by': f'{trained["command"]}; {trained["minutes"]:g} minutes on {trained["machine"]}, {trained["date"]}'
                   if trained else '',
        'note': weights['note']}
