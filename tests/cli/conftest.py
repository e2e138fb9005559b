from collections.abc import Callable

import pytest

from tinyvit_zoo.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed; return what it prints."""
    def run_command(*argv: object) -> str:
        assert main([str(arg) for arg in argv]) == 0
        out, err = capsys.readouterr()
        assert err == ''
        return out
    return run_command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as mistakes do; return the one line."""
    def run_command(*argv: object) -> str:
        assert main([str(arg) for arg in argv]) == 2
        out, err = capsys.readouterr()
        assert out == '' and err.startswith('tinyvit-zoo: ') and err.count('\n') == 1 and err.endswith('\n')
        return err
    return run_command
