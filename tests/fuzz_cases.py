"""Damage, odd values and the allowed ends, for the tests in tests/fuzz.

The environment variable TINYVIT_FUZZ multiplies the number of cases. With 1, the default, they are the same every time;
with more they are drawn anew, and `--hypothesis-seed N` repeats them.
"""
import contextlib
import io
import os
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, currently_in_test_context, event, settings, strategies as st

from tinyvit_zoo import ZooError

FACTOR = float(os.environ.get('TINYVIT_FUZZ', 1))
T = TypeVar('T')

JSON: Any = st.recursive(  # any value that a JSON file may hold, the odd ones among them
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(['', -1, 0, 1e308, 10**30]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=8)


def cases(count: int) -> settings:
    """Decorate a test that tries `count` times TINYVIT_FUZZ cases."""
    return settings(max_examples=max(1, round(count * FACTOR)), derandomize=FACTOR <= 1, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


@st.composite
def damaged(draw: Any, content: bytes, start: int = 0, end: int | None = None) -> bytes:
    """Draw `content` with a bit flipped, its end missing, or a stretch gone, zero or twice, from `start` to `end`."""
    end = min(len(content), len(content) if end is None else end)
    kind = draw(st.sampled_from(['flip', 'flip', 'flip', 'cut', 'gone', 'zero', 'twice']))
    at = draw(st.integers(start, end - 1))
    if kind == 'flip':
        changed = bytes([content[at] ^ 1 << draw(st.integers(0, 7))])
        return content[:at] + changed + content[at + 1:]
    if kind == 'cut':
        return content[:at]
    stop = draw(st.integers(at + 1, min(end, at + 4096)))
    piece = {'gone': b'', 'zero': bytes(stop - at), 'twice': content[at:stop] * 2}[kind]
    return content[:at] + piece + content[stop:]


def outcome(function: Callable[[], T]) -> tuple[T | None, str]:
    """Return the result and '', or None and the one line of a ZooError; any other exception fails the test."""
    try:
        result = function(), ''
        _count('not refused')
        return result
    except ZooError as e:
        assert str(e) and '\n' not in str(e), repr(str(e))
        _count('refused')
        return None, str(e)


def _count(end: str) -> None:
    """Count an end for `pytest --hypothesis-show-statistics`."""
    if currently_in_test_context():
        event(end)


def command(*argv: str) -> tuple[int, str]:
    """Run `tinyvit-zoo` here; return 0 and what it printed, or 2 and its one line. Any other end fails the test."""
    from tinyvit_zoo.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(argv))
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
    _count('refused' if code else 'not refused')
    if code == 0:
        return 0, out.getvalue()
    lines = err.getvalue().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith('tinyvit-zoo: '), (argv, code, lines)
    return code, lines[0]
