"""The code blocks of the documents: Python, commands, and what commands print."""
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r'(?:<!-- (not run|needs): (.*?) -->\n)?^ *```(python|bash|sh|console|toml)\n(.*?)^ *```$', re.M | re.S)
_LOG = r'''
__log() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >&3; }
command_not_found_handle() { __log "$@"; }
python() { __log python "$@"; }
PATH=/none
'''


@dataclass(frozen=True)
class Block:
    """A block of code. `note`: 'not run' or 'needs' of the comment above it, and `reason`, what that says."""
    language: str
    code: str
    note: str
    reason: str


def pages() -> dict[str, str]:
    """The README and the pages, by name."""
    paths = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
    return {path.name: path.read_text(encoding='utf-8') for path in paths}


def blocks(text: str) -> list[Block]:
    return [Block(language, code, note, reason) for note, reason, language, code in _BLOCK.findall(text)]


def files(text: str) -> dict[str, str]:
    """The blocks that begin with `# NAME`, a file of this name."""
    return {block.code.split()[1]: block.code.partition('\n')[2] for block in blocks(text)
            if re.match(r'# \S+\.(py|toml)\n', block.code)}


def commands(block: Block) -> list[list[str]]:
    """Have bash expand a block; return the programs that it would start, with their arguments."""
    script = block.code
    if block.language == 'console':
        script = '\n'.join(re.findall(r'^\$ (.*(?:\\\n.*)*)', script, re.M))
    log = _LOG.replace('python3', sys.executable + ' -S')
    done = subprocess.run(
        ['bash', '-c', f'exec 3>&1 1>/dev/null\n{log}{script}\n\nwait'], capture_output=True, text=True, check=False,
        cwd='/', env={'SLURM_NNODES': '2', 'SLURM_JOB_ID': '1', 'SLURM_JOB_NODELIST': 'n'})
    return [json.loads(line) for line in done.stdout.splitlines()]


def shape(text: str) -> list[str]:
    """What was printed, without its numbers and the width of its columns."""
    return [re.sub(r'\s+', ' ', re.sub(r'-?[\d,]*\.?\d+(e-?\d+)?', '#', line)).strip() for line in text.splitlines()
            if line.strip()]
