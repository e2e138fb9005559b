"""Addresses and pages of Google Drive, which asks before it gives a large file and has errors as pages of HTML."""
import re
import urllib.parse
from contextlib import suppress
from html.parser import HTMLParser

DIRECT = 'https://drive.usercontent.google.com/download?id={}&export=download&confirm=t'
_HOSTS = ('drive.google.com', 'docs.google.com', 'drive.usercontent.google.com')


def drive_id(url: str) -> str:
    """Return the id of the file that a link to Google Drive names; '' for other addresses."""
    parts = urllib.parse.urlparse(url)
    if parts.hostname not in _HOSTS:
        return ''
    found = re.search(r'/d/([\w-]+)', parts.path) or re.search(r'(?:^|&)id=([\w-]+)', parts.query)
    return found[1] if found else ''


def direct_url(url: str) -> str:
    """Return the address that gives the file of a link to Google Drive; other addresses as they are."""
    found = drive_id(url)
    return DIRECT.format(found) if found else url


class Page(HTMLParser):
    """Reads the title, the error and the form of a page.

    `action`, `fields`: of the form that confirms the download of a file too large for Drive's virus scan; '' without.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.action, self._inside = '', False
        self.fields: dict[str, str] = {}
        self._texts: list[str] = []
        with suppress(AssertionError):      # of a declaration that is none
            self.feed(content.decode('utf-8', 'replace'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or '' for key, value in attrs}
        if tag == 'form' and given.get('id') == 'download-form':
            self.action = given.get('action', '')
        elif tag == 'input' and self.action and given.get('type') == 'hidden':
            self.fields[given.get('name', '')] = given.get('value', '')
        self._inside = tag == 'title' or given.get('class', '') in ('uc-error-caption', 'uc-error-subcaption')

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self._texts.append(' '.join(data.split()))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    @property
    def reason(self) -> str:
        return ': '.join(self._texts)[:200] or 'without a title'

    def confirmed(self, url: str) -> str:
        """Return the address that the form leads to from `url`, on the same host; '' if there is none."""
        address = urllib.parse.urljoin(url, self.action)
        same = urllib.parse.urlparse(address)[:2] == urllib.parse.urlparse(url)[:2]
        return f'{address}?{urllib.parse.urlencode(self.fields)}' if self.action and same else ''


def is_page(content: bytes) -> bool:
    return content[:500].lstrip().lower().startswith((b'<!doctype html', b'<html'))
