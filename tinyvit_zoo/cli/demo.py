"""`tinyvit-zoo demo`: a page that classifies images in the browser."""
import argparse
import webbrowser
from contextlib import suppress

from ..publish.demo import make_demo, serving
from ..runtime.files import user_path
from ..runtime.text import show
from ._options import positive

NAME = 'demo'
SUMMARY = 'make a web page that classifies images in the browser'
EXAMPLES = '''
tinyvit-zoo demo cct_2_3x2.digits --output page --serve
tinyvit-zoo demo runs/a runs/b --output page --offline
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', metavar='MODEL', nargs='+', help='NAME[.TAG] of the zoo or timm, NAME[.TAG]=FILE, or '
                        'a run directory; several are shown side by side')
    parser.add_argument('--output', type=user_path, metavar='DIR', required=True, help='a new folder, or that of an '
                        'earlier demo; serve it with any web server, or upload it as a Hugging Face Space')
    parser.add_argument('--img-size', type=positive, metavar='N', help='image size of all models (default: that of '
                        'the weights)')
    parser.add_argument('--offline', action='store_true', help='include onnxruntime-web (14 MB, fetched by npm) '
                        'instead of loading it from cdn.jsdelivr.net')
    parser.add_argument('--serve', action='store_true', help='serve and open the page until Ctrl-C')


def run(args: argparse.Namespace) -> str:
    entries = make_demo(args.models, args.output, args.offline, args.img_size)
    size = sum(path.stat().st_size for path in args.output.rglob('*') if path.is_file()) / 1e6
    text = f'{args.output}: {len(entries)} model{"s" * (len(entries) > 1)}, {size:.1f} MB'
    if not args.serve:
        return f'{text}; serve it with `python -m http.server --directory {args.output}`'
    with serving(args.output) as server:
        address = f'http://127.0.0.1:{server.server_port}/'
        show(f'{text}\n{address} (Ctrl-C ends it)')
        webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return ''
