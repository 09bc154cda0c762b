"""Where public files of weights are, and getting them onto this machine."""

import hashlib
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

import torch
from filelock import FileLock
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.files import replacing, sha256

SCHEME = 'ghostnetv3://'
# A folder, or its URL, that has the public files: for machines without the internet.
MIRROR_VARIABLE = 'MMGNV3_WEIGHTS'


class PublicFile(NamedTuple):
    """A published file of weights.

    Attributes:
        url: Where it lies.
        sha256: Digest of its content, None where nobody published one.
    """

    url: str
    sha256: str | None = None


# By width: the release of the reference code, which holds one file.
PUBLIC_FILES = {
    1.0: PublicFile(
        'https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/GhostNetV3/'
        'ghostnetv3-1.0.pth.tar'
    )
}


def locate(source: str, digest: str | None = None) -> Path:
    """Find a file, and download it where it is not on this machine yet.

    Args:
        source: A width with a public file (``1.0x``), a path, or a URL (``file://`` too). The
            environment variable ``MMGNV3_WEIGHTS`` names a folder, or its URL, that public files
            are taken from in place of the internet.
        digest: SHA-256 that the file must have, in hexadecimal. For public files the known one, if
            there is one, by default.

    Returns:
        Path of the file. Downloads go into torch's hub cache (``$TORCH_HOME/hub/checkpoints``),
        once, and stand there when they are complete and could be read.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be downloaded.
        ValueError: If there is no public file of this width, or the file has another digest.
    """
    if re.fullmatch(r'\d+(\.\d+)?x', source):
        public = _public_file(float(source[:-1]))
        digest = digest or public.sha256
        mirror = os.environ.get(MIRROR_VARIABLE)
        name = public.url.rpartition('/')[2]
        source = f'{mirror.rstrip("/")}/{name}' if mirror else public.url
    url = urlparse(source)
    if url.scheme in ('http', 'https'):
        return _download(source, digest)
    path = Path(unquote(url.path) if url.scheme == 'file' else source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path.absolute()}.')
    _check_digest(path, digest)
    return path


def _public_file(width: float) -> PublicFile:
    if width not in PUBLIC_FILES:
        raise ValueError(f'There are no public weights of GhostNetV3 {width:g}x. {what_exists()}')
    return PUBLIC_FILES[width]


def what_exists() -> str:
    """Say which addresses there are."""
    widths = ', '.join(f'{SCHEME}{width}x' for width in PUBLIC_FILES)
    return f'Public is {widths}; {SCHEME}PATH and {SCHEME}URL take a file of your own.'


def _download(url: str, digest: str | None) -> Path:
    name = Path(urlparse(url).path).name or 'weights'
    if url not in {public.url for public in PUBLIC_FILES.values()}:
        # Files of other places may have the same name.
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # The processes of a distributed run come here at once.
        with FileLock(f'{path}.lock'):
            if not path.is_file():
                _fetch(url, path, digest)
    _check_digest(path, digest)
    return path


def _fetch(url: str, path: Path, digest: str | None) -> None:
    print_log(f'Downloading {url} to {path}', logger='current')
    with replacing(path) as temporary:
        try:
            progress = is_main_process() and sys.stderr.isatty()
            torch.hub.download_url_to_file(url, str(temporary), progress=progress)
        except (OSError, HTTPException) as error:
            raise OSError(
                f'{url} cannot be downloaded ({error}). Get the file on another machine and name '
                f'it as {SCHEME}PATH, or its folder by the environment variable {MIRROR_VARIABLE}.'
            ) from error
        _check_digest(temporary, digest, url)
        # A connection that breaks leaves a part of the file, without an error.
        read_checkpoint(temporary, url)
    if digest is None:
        print_log(
            f'No digest of {url} is known. The SHA-256 of what came is {sha256(path)}; '
            f'#sha256=... behind an address demands it.',
            logger='current',
        )


def _check_digest(path: Path, digest: str | None, name: str | None = None) -> None:
    found = digest and sha256(path)
    if found != digest:
        raise ValueError(
            f'{name or path} is not the expected file: its SHA-256 is {found}, not {digest}. '
            'Remove it and get it again, or correct the digest.'
        )
