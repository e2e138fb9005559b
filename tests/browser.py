"""Chromium without a window, for tests of pages."""
import shutil

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync', '--headless', '--use-fake-device-for-media-stream',
        '--use-fake-ui-for-media-stream']
