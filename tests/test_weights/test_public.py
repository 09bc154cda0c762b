"""Finding and downloading files, from a server on this machine."""

import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256

import pytest
import torch

from mmgnv3.weights import locate, public
from tests.test_weights.foreign import write_reference_file

NAME = 'ghostnetv3-1.0.pth.tar'


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts what is asked for, and cuts files off if told so."""

    requests: list[str] = []
    cut_off = False

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(1000) if self.cut_off else source.read())

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mirror')
    write_reference_file(folder / NAME)
    return folder


@pytest.fixture
def server(folder, monkeypatch):
    """URL of a server of the folder. No proxy stands between it and the tests."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(Handler, 'requests', [])
    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('MMGNV3_WEIGHTS', raising=False)
    # torch's own setting of this folder, which some other test may have made.
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    return tmp_path / 'home' / 'hub' / 'checkpoints'


def files_in(folder):
    return {path.name for path in folder.iterdir() if path.suffix != '.lock'}


def test_path_and_file_url(folder, monkeypatch):
    path = folder / NAME
    monkeypatch.chdir(folder)
    assert locate(str(path)) == locate(path.as_uri()) == path
    assert locate(NAME).samefile(path)


def test_download_once(server, folder, cache):
    url = f'{server}/{NAME}'
    path = locate(url)
    assert path.read_bytes() == (folder / NAME).read_bytes()
    assert path.parent == cache
    # Another place may have another file of that name.
    assert path.name != NAME and path.name.endswith(NAME)
    assert locate(url) == path
    assert Handler.requests == [f'/{NAME}']
    assert files_in(cache) == {path.name}


def test_several_at_once_download_once(server, cache):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(locate, [f'{server}/{NAME}'] * 4))
    assert len(paths) == len(Handler.requests) == 1


@pytest.mark.parametrize('width', ['1x', '1.0x', '1.00x'])
def test_public_file(width, server, folder, cache, monkeypatch):
    official = public.PublicFile(f'{server}/{NAME}')
    monkeypatch.setattr(public, 'PUBLIC_FILES', {1.0: official})
    assert locate(width) == cache / NAME
    # A file that is there already, as torch.hub names it, is taken as it is.
    (cache / NAME).write_bytes(b'other')
    assert locate(width).read_bytes() == b'other'
    assert len(Handler.requests) == 1


@pytest.mark.parametrize('kind', ['folder', 'file', 'http'])
def test_mirror(kind, server, folder, monkeypatch):
    mirrors = dict(folder=str(folder), file=folder.as_uri() + '/', http=server)
    monkeypatch.setenv('MMGNV3_WEIGHTS', mirrors[kind])
    assert locate('1.0x').read_bytes() == (folder / NAME).read_bytes()


def test_the_public_address():
    assert public.PUBLIC_FILES[1.0].url.rpartition('/')[2] == NAME


def test_no_public_file():
    with pytest.raises(ValueError, match=r'no public weights of GhostNetV3 1\.3x.*://1\.0x'):
        locate('1.3x')


def test_missing_file(folder, server, cache):
    for source in ('gone.pth', (folder / 'gone.pth').as_uri()):
        with pytest.raises(FileNotFoundError, match=r'There is no file \S+gone\.pth'):
            locate(source)
    with pytest.raises(OSError, match=r'gone\.pth cannot be downloaded.*404.*MMGNV3_WEIGHTS'):
        locate(f'{server}/gone.pth')
    assert files_in(cache) == set()


def test_download_that_breaks_off(server, cache, monkeypatch):
    monkeypatch.setattr(Handler, 'cut_off', True)
    with pytest.raises((OSError, ValueError), match='cannot be downloaded|cut off'):
        locate(f'{server}/{NAME}')
    assert files_in(cache) == set()
    monkeypatch.setattr(Handler, 'cut_off', False)
    locate(f'{server}/{NAME}')


def test_digest(server, folder, cache, monkeypatch):
    right = sha256((folder / NAME).read_bytes()).hexdigest()
    wrong = '0' * 64
    with pytest.raises(ValueError, match=f'SHA-256 is {right}, not {wrong}'):
        locate(f'{server}/{NAME}', wrong)
    assert files_in(cache) == set()
    path = locate(f'{server}/{NAME}', right)
    with pytest.raises(ValueError, match='not the expected file'):
        locate(f'{server}/{NAME}', wrong)
    with pytest.raises(ValueError, match='not the expected file'):
        locate(str(path), wrong)
    # The known digest of a public file needs not be asked for.
    known = {1.0: public.PublicFile('https://gone.invalid/' + NAME, wrong)}
    monkeypatch.setattr(public, 'PUBLIC_FILES', known)
    monkeypatch.setenv('MMGNV3_WEIGHTS', str(folder))
    with pytest.raises(ValueError, match='not the expected file'):
        locate('1.0x')


def test_digest_is_said_where_none_is_known(server, folder, monkeypatch):
    lines = []
    monkeypatch.setattr(public, 'print_log', lambda message, **_: lines.append(message))
    locate(f'{server}/{NAME}')
    assert sha256((folder / NAME).read_bytes()).hexdigest() in lines[-1]
    assert 'No digest' in lines[-1]
