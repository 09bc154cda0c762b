"""Imported by the config of a run that is to be killed while it writes its second checkpoint."""

import os
import signal
from pathlib import Path

from mmengine.fileio import LocalBackend


def _put_half(self: LocalBackend, obj: bytes, filepath: str | Path) -> None:
    with open(filepath, 'wb') as file:
        if 'epoch_2.pth' in str(filepath):
            file.write(obj[: len(obj) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(obj)


LocalBackend.put = _put_half
