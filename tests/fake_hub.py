"""A Hub on this machine: what the real client asks of it when it publishes and loads, and its faults."""
from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = 'hf_ofTheFakeHub'  # may write in the namespace `org`
Repository = list[dict[str, bytes]]  # the files after each commit
FIRST = {'.gitattributes': b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'}


class FakeHub:
    """`faults`: what goes wrong in which step (a method of Handler): an HTTP status instead of the answer, 'break': the
    connection breaks half-way and nothing is done, 'late': it is done, and no answer comes. `times` says how often.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: dict[str, int | str] = {}
        self.times = 1_000
        self.calls: list[str] = []
        self.url = ''

    def files(self, repo_id: str) -> dict[str, bytes]:
        return {name: content for name, content in self.repositories[repo_id][-1].items() if name not in FIRST}

    def fault(self, step: str) -> int | str | None:
        if step in self.faults and self.times:
            self.times -= 1
            return self.faults[step]
        return None


def commit_id(repository: Repository, index: int = -1) -> str:
    return hashlib.sha1(f'{index % len(repository)} {sorted(repository[index].items())}'.encode()).hexdigest()


def object_id(name: str, content: bytes) -> str:
    """As git and its large file storage name it."""
    if name.endswith('.safetensors'):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Refused(Exception):
    def __init__(self, status: int, code: str = '', message: str = '') -> None:
        self.status, self.headers = status, {'X-Error-Code': code, 'X-Error-Message': message}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: FakeHub

    # -- the protocol --------------------------------------------------------------------------------------------------
    def info(self, repo_id: str) -> dict[str, Any]:
        repository = self.repository(repo_id)
        return {'id': repo_id, 'sha': commit_id(repository),
                'siblings': [{'rfilename': name} for name in repository[-1]]}

    def create(self) -> dict[str, Any]:
        repo_id = self.named()
        if repo_id in self.hub.repositories:
            raise Refused(409, message='You already created this model repo')
        self.hub.repositories[repo_id] = [dict(FIRST)]
        return {'url': f'{self.hub.url}/{repo_id}'}

    def delete(self) -> dict[str, Any]:
        repo_id = self.named()
        self.repository(repo_id)
        del self.hub.repositories[repo_id]
        return {}

    def validate(self) -> dict[str, Any]:
        _, front, _ = self.json()['content'].split('---\n', 2)
        found = yaml.safe_load(front)
        if not re.fullmatch(r'[\w.-]+', found['license']):
            raise Refused(400)
        return {'errors': [], 'warnings': []}

    def preupload(self, repo_id: str) -> dict[str, Any]:
        self.may_write(repo_id)
        held = self.repository(repo_id)[-1]
        return {'files': [
            {'path': file['path'], 'uploadMode': 'lfs' if file['path'].endswith('.safetensors') else 'regular',
             'shouldIgnore': False,
             **({'oid': object_id(file['path'], held[file['path']])} if file['path'] in held else {})}
            for file in self.json()['files']]}

    def batch(self, repo_id: str) -> dict[str, Any]:
        self.may_write(repo_id)
        self.repository(repo_id)
        objects = []
        for wanted in self.json()['objects']:
            oid = wanted['oid']
            actions = {name: {'href': f'{self.hub.url}/storage/{name}/{oid}'} for name in ('upload', 'verify')}
            objects.append({**wanted, **({} if oid in self.hub.uploads else {'actions': actions})})
        return {'transfer': 'basic', 'objects': objects}

    def upload(self, oid: str) -> dict[str, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400)
        self.hub.uploads[oid] = self.body
        return {}

    def verify(self, oid: str) -> dict[str, Any]:
        if len(self.hub.uploads[oid]) != self.json()['size']:
            raise Refused(400)
        return {}

    def commit(self, repo_id: str) -> dict[str, Any]:
        self.may_write(repo_id)
        repository = self.repository(repo_id)
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header['value'].get('parentCommit', commit_id(repository)) != commit_id(repository):
            raise Refused(412)
        files = dict(repository[-1])
        for operation in operations:
            value = operation['value']
            large = operation['key'] == 'lfsFile'
            files[value['path']] = self.hub.uploads[value['oid']] if large else base64.b64decode(value['content'])
        repository.append(files)
        return {'commitUrl': f'{self.hub.url}/{repo_id}/commit/{commit_id(repository)}',
                'commitOid': commit_id(repository)}

    def resolve(self, repo_id: str, revision: str, name: str) -> bytes:
        repository = self.repository(repo_id)
        commits = {commit_id(repository, i): files for i, files in enumerate(repository)}
        files = commits.get(revision, repository[-1])
        if name not in files:
            raise Refused(404, 'EntryNotFound')
        self.extra = {'ETag': f'"{object_id(name, files[name])}"', 'X-Repo-Commit': commit_id(repository)}
        return files[name]

    def unknown(self) -> None:
        raise Refused(404)

    # -- what they share -----------------------------------------------------------------------------------------------
    def json(self) -> Any:
        return json.loads(self.body)

    def named(self) -> str:
        repo_id = f'{self.json()["organization"]}/{self.json()["name"]}'
        self.may_write(repo_id)
        return repo_id

    def repository(self, repo_id: str) -> Repository:
        if repo_id not in self.hub.repositories:
            raise Refused(404, 'RepoNotFound')
        return self.hub.repositories[repo_id]

    def may_write(self, repo_id: str) -> None:
        if 'Authorization' not in self.headers:
            raise Refused(401, message='Invalid username or password.')
        if not repo_id.startswith('org/'):
            raise Refused(403, message="You don't have the rights to create a model under this namespace")

    def check_token(self) -> None:
        if self.headers.get('Authorization', f'Bearer {TOKEN}') != f'Bearer {TOKEN}':
            raise Refused(401, message='Invalid credentials in Authorization header')

    # -- HTTP ----------------------------------------------------------------------------------------------------------
    def answer(self) -> None:
        self.extra: dict[str, str] = {}
        path = self.path.partition('?')[0]
        found = ((name, match.groups()) for (method, pattern), name in ROUTES.items()
                 if method == self.command and (match := re.fullmatch(pattern, path)))
        step, arguments = next(found, ('unknown', ()))
        self.hub.calls.append(step)
        fault = self.hub.fault(step)
        length = int(self.headers.get('Content-Length') or 0)
        if fault == 'break':
            self.rfile.read(length // 2)
        else:
            self.body = self.rfile.read(length)
        content, status = self.content(step, arguments, fault)
        self.send_response(status)
        start = int(re.sub(r'\D', '', self.headers.get('Range', '0')) or 0)
        for name, value in {**self.extra, 'Content-Length': str(len(content) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            end = (start + len(content)) // 2 if fault == 'break' else len(content)
            self.wfile.write(content[start:end])
        if fault == 'break':
            self.close_connection = True

    def content(self, step: str, arguments: tuple[str, ...], fault: int | str | None) -> tuple[bytes, int]:
        if fault == 'break' and step != 'fetch':
            raise ConnectionAbortedError
        try:
            if isinstance(fault, int):
                raise Refused(fault)
            self.check_token()
            found = getattr(self, 'resolve' if step == 'fetch' else step)(*arguments)
        except Refused as refusal:
            self.extra = {name: value for name, value in refusal.headers.items() if value}
            return b'{"error": "refused"}', refusal.status
        if fault == 'late':
            raise ConnectionAbortedError
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        return content, 206 if 'Range' in self.headers else 200

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        pass


REPO = r'([\w.-]+/[\w.-]+)'
ROUTES: dict[tuple[str, str], str] = {
    ('GET', f'/api/models/{REPO}(?:/revision/main)?'): 'info',
    ('POST', '/api/repos/create'): 'create',
    ('DELETE', '/api/repos/delete'): 'delete',
    ('POST', '/api/validate-yaml'): 'validate',
    ('POST', f'/api/models/{REPO}/preupload/main'): 'preupload',
    ('POST', f'/{REPO}.git/info/lfs/objects/batch'): 'batch',
    ('PUT', r'/storage/upload/(\w+)'): 'upload',
    ('POST', r'/storage/verify/(\w+)'): 'verify',
    ('POST', f'/api/models/{REPO}/commit/main'): 'commit',
    ('HEAD', f'/{REPO}/resolve/(\\w+)/(.+)'): 'resolve',
    ('GET', f'/{REPO}/resolve/(\\w+)/(.+)'): 'fetch',
}


@contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()
    handler: Callable[..., BaseHTTPRequestHandler] = type('Bound', (Handler,), {'hub': hub})
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)  # type: ignore[arg-type]
    hub.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
