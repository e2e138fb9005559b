"""Autoload: the start-up file, the hook it executes, and the distribution's RECORD.

Tests that write have an environment of their own, others share one (bare venvs, made in milliseconds), with a timm and
a tinyvit_zoo of a few lines, in which the real `autoload.py`, `_startup.py` and what they import lie.
"""
from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'tinyvit_zoo'
FILE = 'tinyvit_zoo_autoload.pth'
METADATA = 'Metadata-Version: 2.1\nName: tinyvit-zoo\nVersion: {version}\n'
TIMM = {
    'timm/__init__.py': 'from .models import create_model\nwhole = True\n',
    'timm/models/__init__.py': (
        'registry = {}\n'
        'def register_model(build):\n    registry[build.__name__] = build\n'
        'def create_model(name):\n    return registry[name]()\n'),
}
# Refuses a half-imported timm, and counts how often it is executed.
ZOO = """\
import builtins
import timm.models
from timm import create_model, whole
builtins.zoo_imports = getattr(builtins, 'zoo_imports', 0) + 1
@timm.models.register_model
def cct():
    return 'a cct'
"""
CREATE = 'import timm; print(timm.create_model("cct"))'
KNOWN = 'import timm; print("cct" in timm.models.registry)'


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def add_zoo(folder: Path, init: str = ZOO) -> None:
    write(folder, {'tinyvit_zoo/__init__.py': init})
    (folder / 'tinyvit_zoo' / 'runtime').mkdir(exist_ok=True)
    for name in ('_startup.py', 'autoload.py', 'errors.py', 'runtime/__init__.py', 'runtime/files.py'):
        shutil.copy(PACKAGE / name, folder / 'tinyvit_zoo' / name)


class Environment:
    """A venv with the fakes; `run` is a process in it, without the variables that would lead it elsewhere."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / 'bin' / 'python'
        self.site = next(folder.glob('lib/python*/site-packages')).resolve()
        self.file = self.site / FILE
        self.info = self.site / 'tinyvit_zoo-1.0.dist-info'
        self.record = self.info / 'RECORD'
        write(self.site, TIMM)

    def install(self, record: str = 'tinyvit_zoo/__init__.py,,\ntinyvit_zoo-1.0.dist-info/RECORD,,\n') -> None:
        add_zoo(self.site)
        self.add_info(record)

    def add_info(self, record: str) -> None:
        write(self.info, {'METADATA': METADATA.format(version='1.0')})
        self.record.write_bytes(record.encode())

    def run(self, code: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.process([str(self.python), *options, '-c', textwrap.dedent(code)], **variables)

    def pip(self, *arguments: str) -> None:
        options = ['-q', '--disable-pip-version-check', '--python', str(self.python)]
        self.process([sys.executable, '-m', 'pip', *options, *arguments])

    def process(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        misleading = ('PYTHON', 'PIP_', 'LC_', 'LANG')
        clean = {name: value for name, value in os.environ.items() if not name.startswith(misleading)}
        done = subprocess.run(command, env={**clean, **variables}, cwd=self.site.parent,
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    def say(self, code: str, *options: str, **variables: str) -> str:
        """What a process prints, which may have nothing to complain of."""
        done = self.run(code, *options, **variables)
        assert done.stderr == ''
        return done.stdout.strip()

    def call(self, function: str, **variables: str) -> str:
        return self.say(f'from tinyvit_zoo import autoload; print(autoload.{function}())', **variables)

    def refuse(self, function: str, before: str = '', **variables: str) -> str:
        """The one line of the ZooError the function raises."""
        done = self.run(f'from tinyvit_zoo import autoload, errors\n{before}\n'
                        f'try: autoload.{function}()\nexcept errors.ZooError as error: print(error)\n'
                        'else: raise SystemExit("no error")', **variables)
        assert done.stdout.count('\n') == 1, done.stdout
        return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / 'environment')
    made.install()
    return made


@pytest.fixture
def switched_on(environment: Environment) -> Environment:
    environment.call('switch_on')
    return environment


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Switched on, for tests that only read."""
    environment = Environment(tmp_path_factory.mktemp('shared') / 'environment')
    environment.install()
    environment.call('switch_on')
    return environment


# What it is for

def test_timm_knows_the_models_from_on_to_off_in_a_process_that_never_names_us(environment: Environment) -> None:
    assert environment.say(KNOWN) == 'False'
    before = sorted(environment.site.iterdir())
    assert environment.call('switch_on') == str(environment.file)
    assert environment.say(CREATE) == 'a cct'
    assert environment.say(CREATE, '-I') == 'a cct'
    assert environment.call('switch_off') == 'True'
    assert environment.say(KNOWN) == 'False'
    assert sorted(environment.site.iterdir()) == before
    assert environment.call('switch_off') == 'False'


@pytest.mark.parametrize('line', ['import timm', 'import timm.models', 'from timm import create_model',
                                  'from timm.models import registry', '__import__("timm.models")'])
def test_every_way_to_import_timm_registers(shared: Environment, line: str) -> None:
    code = f'{line}; import sys; print(sys.modules["timm.models"].create_model("cct"), zoo_imports)'
    assert shared.say(code) == 'a cct 1'


def test_an_editable_install_points_into_the_source_tree(tmp_path: Path) -> None:
    environment = Environment(tmp_path / 'environment')
    add_zoo(tmp_path / 'source')
    environment.add_info('tinyvit_zoo-1.0.dist-info/RECORD,,\n')
    (environment.site / '__editable__.tinyvit_zoo.pth').write_text(f'{tmp_path / "source"}\n')
    environment.call('switch_on')
    assert str(tmp_path / 'source' / 'tinyvit_zoo' / '_startup.py') in environment.file.read_text()
    assert 'on for this installation' in environment.call('status')
    assert environment.say(CREATE) == 'a cct'


def test_a_path_with_spaces_quotes_and_other_scripts_works_in_every_locale(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "the zoo's Tübingen \U0001f98e")
    environment.install()
    utf8 = {'PYTHONUTF8': '1'}
    environment.call('switch_on', **utf8)
    assert environment.file.read_bytes().isascii()
    assert environment.say(CREATE, **utf8) == 'a cct'
    assert environment.say(CREATE, PYTHONUTF8='0', LC_ALL='C', PYTHONCOERCECLOCALE='0') == 'a cct'
    assert 'on for this installation' in environment.call('status', **utf8)


# What it costs

def test_a_start_of_python_loads_no_module_more(environment: Environment) -> None:
    (environment.site / 'other.pth').write_text('# from 3.13 on, any such file makes site load a codec\n')
    code = 'import sys; print(sorted(sys.modules))'
    before = environment.say(code)
    environment.call('switch_on')
    assert environment.say(code) == before
    assert 'tinyvit_zoo' not in environment.say('import json, sys; print(sorted(sys.modules))')


def test_the_start_up_line_takes_less_than_20_ms(shared: Environment) -> None:
    line = shared.file.read_text().splitlines()[1]
    assert min(float(shared.say(f'''
        import time
        start = time.perf_counter()
        exec({line!r})
        print(time.perf_counter() - start)
    ''')) for _ in range(3)) < 0.02


def test_the_file_is_a_comment_that_says_how_to_remove_it_and_one_line(shared: Environment) -> None:
    comment, line = shared.file.read_text().splitlines()
    assert comment.startswith('#') and 'tinyvit-zoo autoload off' in comment
    assert line.startswith('import ')


# What may go wrong in a process

def test_a_zoo_that_fails_to_import_is_one_warning_and_timm_goes_on(switched_on: Environment) -> None:
    add_zoo(switched_on.site, 'raise OSError("broken\\nin two lines")')
    done = switched_on.run('import timm, timm.models; print(timm.whole)')
    assert done.stdout == 'True\n'
    assert done.stderr.count('Warning:') == 1
    assert 'OSError: broken)' in done.stderr and 'tinyvit-zoo autoload off' in done.stderr and FILE in done.stderr
    assert switched_on.say('import timm; print(timm.whole)', '-W', 'error') == 'True'


def test_a_zoo_that_ends_the_process_is_one_warning_and_timm_goes_on(switched_on: Environment) -> None:
    write(switched_on.site, {'tinyvit_zoo/__init__.py': 'import sys\nsys.exit("over")\n'})
    done = switched_on.run(f'{KNOWN}; print("still here")')
    assert done.stdout == 'False\nstill here\n' and 'SystemExit: over' in done.stderr


def test_a_package_of_this_name_elsewhere_is_not_executed(switched_on: Environment) -> None:
    write(switched_on.site.parent, {'tinyvit_zoo/__init__.py': 'print("foreign")\n'})    # the current folder
    done = switched_on.run(KNOWN)
    assert done.stdout == 'False\n' and done.stderr.count('RuntimeWarning') == 1 and 'comes before' in done.stderr
    (switched_on.site.parent / 'tinyvit_zoo' / '__init__.py').unlink()     # a folder alone is no package
    assert switched_on.say(KNOWN) == 'True'


def test_a_zoo_that_lacks_a_module_says_which(switched_on: Environment) -> None:
    add_zoo(switched_on.site, 'import nowhere_to_be_found')
    assert 'nowhere_to_be_found' in switched_on.run('import timm').stderr


def test_left_behind_the_file_does_nothing(switched_on: Environment) -> None:
    (switched_on.site / 'tinyvit_zoo' / '__init__.py').unlink()
    shutil.move(switched_on.site / 'tinyvit_zoo', switched_on.site / 'elsewhere')
    assert switched_on.say(KNOWN, '-X', 'dev', '-W', 'error') == 'False'


def test_a_hook_whose_package_cannot_be_imported_any_more_does_nothing(tmp_path: Path) -> None:
    environment = Environment(tmp_path / 'environment')
    add_zoo(tmp_path / 'source')
    environment.add_info('tinyvit_zoo-1.0.dist-info/RECORD,,\n')
    environment.call('switch_on', PYTHONPATH=str(tmp_path / 'source'))
    assert environment.say(KNOWN) == 'False'


def test_nothing_is_left_open_at_the_start(shared: Environment) -> None:
    assert shared.say('print("started")', '-X', 'dev', '-W', 'error') == 'started'


def test_the_zoo_imported_first_is_imported_once_and_sees_all_of_timm(shared: Environment) -> None:
    assert shared.say('import tinyvit_zoo, timm; print(timm.create_model("cct"), zoo_imports)') == 'a cct 1'


def test_timm_imported_before_the_start_up_file_is_read(shared: Environment) -> None:
    folder = str(shared.site)
    assert shared.say(f'''
        import site, sys
        sys.path.append({folder!r})
        import timm
        assert not timm.models.registry
        site.addsitedir({folder!r})
        print(timm.create_model('cct'), zoo_imports)
    ''', '-S') == 'a cct 1'


def test_a_start_up_file_read_twice_hooks_once(shared: Environment) -> None:
    assert shared.say(f'''
        import site, sys
        before = list(sys.meta_path)
        site.addsitedir({str(shared.site)!r})
        print(sys.meta_path == before)
    ''') == 'True'


def test_a_timm_that_fails_raises_its_own_error_and_may_be_imported_again(switched_on: Environment) -> None:
    models = 'timm/models/__init__.py'
    write(switched_on.site, {models: f'import builtins\nbuiltins.mended or 1 / 0\n{TIMM[models]}'})
    assert switched_on.say('''
        import builtins
        builtins.mended = False
        try: import timm
        except ZeroDivisionError: builtins.mended = True
        import timm
        print(timm.create_model('cct'))
    ''') == 'a cct'


def test_without_timm_its_import_fails_as_ever(switched_on: Environment) -> None:
    shutil.rmtree(switched_on.site / 'timm')
    code = 'try: import timm\nexcept ModuleNotFoundError as error: print(error.name)'
    assert switched_on.say(code) == 'timm'


def test_timm_keeps_its_own_loader(shared: Environment) -> None:
    assert shared.say('''
        import importlib, importlib.util, inspect
        spec = importlib.util.find_spec('timm')
        assert spec.loader.get_filename('timm') == spec.origin
        import timm
        for module in timm, timm.models, importlib.reload(timm.models):
            assert module.__spec__.loader is module.__loader__
            assert 'create_model' in inspect.getsource(module)
            print(type(module.__loader__).__name__)
    ''').split() == ['SourceFileLoader'] * 3


def test_a_finder_that_asks_all_the_others_does_not_go_round_in_circles(shared: Environment) -> None:
    for place in 0, 1:  # before ours and behind it
        assert shared.say(f'''
            import sys
            class Naive:
                def find_spec(self, name, path=None, target=None):
                    found = (other.find_spec(name, path, target) for other in sys.meta_path if other is not self)
                    return next(filter(None, found), None)
            sys.meta_path.insert({place}, Naive())
            {CREATE}
        ''') == 'a cct'


@pytest.mark.parametrize('first', ['timm', 'timm.models', 'tinyvit_zoo'])
def test_threads_that_import_at_once_neither_fail_nor_wait_for_ever(switched_on: Environment, first: str) -> None:
    slow = 'import time; time.sleep(0.03)\n'
    write(switched_on.site, {'timm/__init__.py': TIMM['timm/__init__.py'] + slow})
    add_zoo(switched_on.site, slow + ZOO + slow)
    assert switched_on.say(f'''
        import importlib, sys, threading, time
        sys.setswitchinterval(1e-6)
        errors = []
        def load(name, wait):
            time.sleep(wait)
            try: assert importlib.import_module(name) and sys.modules['timm'].whole
            except BaseException as error: errors.append(repr(error))
        names = [{first!r}] + ['timm', 'tinyvit_zoo', 'timm.models'] * 4
        threads = [threading.Thread(target=load, args=(name, 0.01 * i)) for i, name in enumerate(names)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        import timm
        print(errors, timm.create_model('cct'), zoo_imports)
    ''') == '[] a cct 1'


def test_timm_does_not_wait_for_a_thread_that_imports_the_zoo_already(switched_on: Environment) -> None:
    add_zoo(switched_on.site, f'import builtins\nbuiltins.begun.set()\nassert builtins.timm_is_in.wait(2)\n{ZOO}')
    assert switched_on.say('''
        import builtins, threading
        builtins.begun, builtins.timm_is_in = threading.Event(), threading.Event()
        thread = threading.Thread(target=__import__, args=('tinyvit_zoo',))
        thread.start()
        begun.wait()
        import timm
        timm_is_in.set()
        thread.join()
        print(timm.create_model('cct'), zoo_imports)
    ''') == 'a cct 1'


# What stays on the disk

@pytest.mark.parametrize('record', [
    'tinyvit_zoo/__init__.py,sha256=abc,3\ntinyvit_zoo-1.0.dist-info/RECORD,,\n',
    'tinyvit_zoo/__init__.py,sha256=abc,3\r\n"a, b.py",,\r\ntinyvit_zoo-1.0.dist-info/RECORD,,\r\n',
    'tinyvit_zoo/__init__.py,sha256=abc,3\ntinyvit_zoo-1.0.dist-info/RECORD,,',
], ids=['lf', 'crlf', 'no last newline'])
def test_record_gains_one_true_line_and_loses_it_to_the_byte(environment: Environment, record: str) -> None:
    environment.add_info(record)
    environment.record.chmod(0o640)
    environment.call('switch_on')
    lines = environment.record.read_bytes().splitlines(keepends=True)
    content = environment.file.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
    ours = f'{FILE},sha256={digest},{len(content)}'.encode() + (b'\r\n' if '\r\n' in record else b'\n')
    assert [line for line in lines if line not in record.encode().splitlines(keepends=True)] == [ours]
    both = environment.record.read_bytes(), environment.file.stat().st_mtime_ns
    environment.call('switch_on')
    assert (environment.record.read_bytes(), environment.file.stat().st_mtime_ns) == both
    environment.call('switch_off')
    assert environment.record.read_bytes() == record.encode()
    assert environment.record.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in environment.info.iterdir()) == ['METADATA', 'RECORD']


def test_the_file_is_readable_to_every_user(environment: Environment) -> None:
    environment.run('import os; os.umask(0o022); from tinyvit_zoo import autoload; autoload.switch_on()')
    assert environment.file.stat().st_mode & 0o777 == 0o644


def test_pip_uninstall_takes_the_file_along(tmp_path: Path) -> None:
    pytest.importorskip('pip')
    environment = Environment(tmp_path / 'environment')
    before = sorted(environment.site.iterdir())
    add_zoo(environment.site)
    package = [f'{path.relative_to(environment.site)},,\n' for path in environment.site.glob('tinyvit_zoo/**/*.py')]
    info = [f'{environment.info.name}/{name},,\n' for name in ('METADATA', 'RECORD')]
    environment.add_info(''.join(package + info))
    environment.call('switch_on')
    environment.pip('uninstall', '-y', 'tinyvit-zoo')
    assert sorted(environment.site.iterdir()) == before


@pytest.mark.slow
def test_pip_takes_the_file_along_when_it_upgrades_as_the_help_says(tmp_path: Path) -> None:
    pytest.importorskip('pip')
    environment = Environment(tmp_path / 'environment')
    for version in ('1.0', '2.0'):
        environment.pip('install', '--no-index', '--no-deps', str(build_wheel(tmp_path, version)))
        assert not environment.file.exists()
        environment.call('switch_on')
        assert environment.say(CREATE) == 'a cct'


def build_wheel(folder: Path, version: str) -> Path:
    info = f'tinyvit_zoo-{version}.dist-info'
    tag = 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    add_zoo(folder / version)
    write(folder / version / info, {'METADATA': METADATA.format(version=version), 'WHEEL': tag, 'RECORD': ''})
    files = [path for path in (folder / version).rglob('*') if path.is_file()]
    names = [path.relative_to(folder / version).as_posix() for path in files]
    write(folder / version / info, {'RECORD': ''.join(f'{name},,\n' for name in names)})
    wheel = folder / f'tinyvit_zoo-{version}-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        for path, name in zip(files, names, strict=True):
            archive.write(path, name)
    return wheel


# What it says

def test_status_says_on_off_and_whose(environment: Environment) -> None:
    fields = ('from tinyvit_zoo import autoload; found = autoload.status()\n'
              f'print(found.on, found.ours, str(found.path) == {str(environment.file)!r}, str(found), sep="|")')
    assert environment.say(fields) == f'False|False|True|autoload is off: there is no {environment.file}'
    environment.call('switch_on')
    assert environment.say(fields).startswith('True|True|True|autoload is on for this installation')
    environment.file.write_text(environment.file.read_text().replace('tinyvit_zoo/_startup.py', 'other/_startup.py'))
    assert environment.say(fields).startswith('True|False|True|autoload is on for another installation')
    environment.call('switch_on')
    assert environment.say(fields).startswith('True|True|')


@pytest.mark.parametrize('function', ['switch_on', 'switch_off', 'status'])
def test_a_source_tree_is_refused(tmp_path: Path, function: str) -> None:
    environment = Environment(tmp_path / 'environment')
    add_zoo(tmp_path / 'source')
    egg_info = {'PKG-INFO': METADATA.format(version='1.0'), 'SOURCES.txt': 'README.md\n'}
    write(tmp_path / 'source' / 'tinyvit_zoo.egg-info', egg_info)
    assert 'no installed tinyvit-zoo' in environment.refuse(function, PYTHONPATH=str(tmp_path / 'source'))


@pytest.mark.parametrize('function', ['switch_on', 'switch_off', 'status'])
def test_a_record_that_is_no_text_is_refused(environment: Environment, function: str) -> None:
    content = b'\xff\xfe,,\n' + environment.record.read_bytes()
    environment.record.write_bytes(content)
    assert 'RECORD of tinyvit-zoo is damaged' in environment.refuse(function)
    assert environment.record.read_bytes() == content and not environment.file.exists()


def test_a_directory_python_reads_no_start_up_files_from_is_refused(environment: Environment, tmp_path: Path) -> None:
    for name in ('tinyvit_zoo', environment.info.name):
        shutil.move(environment.site / name, tmp_path / 'target' / name)
    assert str(environment.site) in environment.refuse('switch_on', PYTHONPATH=str(tmp_path / 'target'))
    assert not (tmp_path / 'target' / FILE).exists()


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left_beside(environment: Environment) -> None:
    record = environment.record.read_bytes()
    deny = 'import os\ndef deny(*paths): raise PermissionError(13, "Permission denied", paths[1])\nos.replace = deny'
    said = environment.refuse('switch_on', before=deny)
    assert 'Permission denied' in said and str(environment.record) in said and 'import tinyvit_zoo' in said
    assert environment.record.read_bytes() == record
    assert not [path for path in environment.site.rglob('*') if 'partial' in path.name or path.name == FILE]


def test_a_python_that_would_ignore_the_file_is_refused(environment: Environment) -> None:
    newer = 'import sys; sys.version_info = (3, 18, 0, "final", 0)'
    assert 'Python 3.18' in environment.refuse('switch_on', before=newer)
    assert not environment.file.exists()


# The real ones

@pytest.mark.slow
def test_the_real_timm_knows_the_real_zoo(tmp_path: Path) -> None:
    timm = find_spec('timm')
    assert timm is not None and timm.origin is not None
    environment = Environment(tmp_path / 'environment')
    shutil.rmtree(environment.site / 'timm')
    environment.add_info('tinyvit_zoo-1.0.dist-info/RECORD,,\n')
    for name, folder in {'zoo': PACKAGE.parent, 'timm': Path(timm.origin).parents[1]}.items():
        (environment.site / f'{name}.pth').write_text(f'{folder}\n')
    known = 'import sys, timm; print(timm.is_model("cct_7_3x1"), "tinyvit_zoo" in sys.modules)'
    switched = environment.run(f'{known}; from tinyvit_zoo import autoload; autoload.switch_on()')
    assert switched.stdout == 'False False\n'
    assert environment.run(known).stdout == 'True True\n'
