"""The distribution `mmgnv3`: metadata, extras, and the configs and tools in the wheel."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """Read the version without importing the package.

    Returns:
        str: ``__version__`` of ``mmgnv3/__init__.py``.
    """
    source = (ROOT / 'mmgnv3' / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", source, flags=re.MULTILINE).group(1)


def requirements(name: str) -> list[str]:
    """Read one file of ``requirements/``.

    Args:
        name (str): The file's name without its suffix.

    Returns:
        list[str]: Its requirements, comments left out.
    """
    text = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8')
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def long_description() -> str:
    """Read the README without its pictures: a package index has no files for their links.

    Returns:
        str: Markdown whose links are all absolute.
    """
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    return re.sub(r'^!\[[^\]]*\]\((?!https:)[^)]*\)\n+', '', text, flags=re.MULTILINE)


class BuildWithMim(build_py):
    """Puts ``configs``, ``tools`` and ``model-index.yml`` into ``mmgnv3/.mim``.

    OpenMMLab's packages have them there. openmim finds a config there by its base name; onedl-mim
    0.5 looks into the first folder of the installed files, ``mmgnv3-X.dist-info`` here, and has to
    be given the path. Copies, not links: a wheel cannot hold links. An editable install has no such
    folder, and onedl-mim looks into the checkout.
    """

    def run(self) -> None:
        """Build the package, then add them."""
        super().run()
        if self.editable_mode:
            return
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib, 'mmgnv3', '.mim', folder)
            # A build directory outlives a build: what was renamed since must not come along.
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, target, ignore=shutil.ignore_patterns('__pycache__', 'setup_env.py')
            )
        shutil.copy(ROOT / 'model-index.yml', target.parent)


setup(
    name='mmgnv3',
    version=version(),
    description='GhostNetV3 backbones and their training recipe for OpenMMLab',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    author='the mmgnv3 authors',
    license='Apache-2.0',
    project_urls={'Paper': 'https://arxiv.org/abs/2404.11202'},
    packages=find_packages(include=['mmgnv3', 'mmgnv3.*']),
    package_data={'mmgnv3.ops': ['csrc/*']},
    python_requires='>=3.10,<3.13',
    # No OpenMMLab distribution here: OneDL's and upstream's own the same modules, and pulling in
    # one line beside the other breaks both. The extras are the choice between them.
    # From torch 2.5 on, files are opened without running what they hold, known classes excepted.
    install_requires=['numpy', 'torch>=2.5'],
    extras_require={name: requirements(name) for name in ('onedl', 'openmmlab', 'dev')},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
