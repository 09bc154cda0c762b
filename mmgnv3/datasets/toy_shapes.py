"""A small detection data set that is drawn, not downloaded: creatures of a rock pool.

Every picture is a function of ``(seed, split, index)`` alone. A scene is a textured ground and a
stack of sprites, back to front. A sprite is an implicit function on the plane: it says for each
pixel how deep inside the outline it lies and how light or dark the texture is there, so that one
drawing routine serves all of them.

What makes the set a detection task and not a color lookup: a class has favorite colors, but shares
them with others and makes exceptions; pebbles share outlines with the creatures, banded pebbles
share textures, and broken pieces share both.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import EllipsisType

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ('starfish', 'urchin', 'scallop', 'fish', 'kelp')

Plane = NDArray[np.float32]
Outline = Callable[[Plane, Plane, np.random.Generator], tuple[Plane, Plane]]

_MARKER = 'toy_shapes.json'
# Goes into the marker: a data set drawn by an older generator is not taken for today's.
_GENERATOR_VERSION = 1
# An object of which less than this part can be seen is not in the scene at all.
_MIN_VISIBLE = 0.6
_MIN_BOX_SIDE = 8
_SHADOW_REACH = 10  # pixels a shadow needs around its sprite
_JPEG_QUALITY = 92


# --- sprites: (u, v) in an object's own frame -> depth inside the outline, tone of the texture ---


def _starfish(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    arm = 0.5 + 0.5 * np.cos(5 * (theta + rng.uniform(-0.35, 0.35) * r))
    edge = rng.uniform(0.32, 0.42) + 0.62 * arm ** rng.uniform(1.1, 1.6)
    pitch = rng.uniform(13, 16)
    dots = np.cos(pitch * u) * np.cos(pitch * v)
    return 0.6 * (edge - r), np.tanh(4 * (dots - 0.25)) + 0.5 * arm**6


def _urchin(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    r, theta = np.hypot(u, v * rng.uniform(1.0, 1.15)), np.arctan2(v, u)
    ribs = np.cos(rng.integers(9, 13) * theta)
    beads = np.clip(ribs, 0, 1) * np.cos(rng.uniform(17, 21) * r)
    tone = np.tanh(3 * ribs - 0.6) * np.clip(3 * r, 0, 1) + 1.2 * beads
    return 1 - r + 0.03 * ribs, tone - 3 * np.exp(-((r / 0.13) ** 2))


def _scallop(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    y = v + 0.85  # polar coordinates around the hinge
    rho, phi = np.hypot(u, y), np.arctan2(u, y)
    ribs = np.cos(rng.integers(15, 20) * phi)
    fan = np.minimum(1.72 * np.cos(0.55 * phi) + 0.04 * ribs - rho, rho * (1.02 - np.abs(phi)))
    ears = np.minimum(0.42 - np.abs(u), 0.13 - np.abs(y - 0.1))
    return np.maximum(0.8 * fan, ears), 1.1 * ribs + 0.6 * np.cos(rng.uniform(8, 12) * rho)


def _fish(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    x = np.clip((u - 0.2) / 0.8, -1, 1)
    body = rng.uniform(0.38, 0.48) * (1 - x * x) * (1.06 + 0.25 * x) - np.abs(v)
    tail = np.minimum(-0.32 - 0.72 * u - np.abs(v), u + 1 - 0.3 * np.cos(2.5 * v))
    fin = np.minimum(0.74 + v - 0.9 * np.abs(u - 0.15 - 0.35 * v), -v)
    stripes = np.tanh(3 * np.cos(rng.uniform(10, 13) * (u + 0.5 * v * v) + rng.uniform(0, 6)))
    head = np.clip(8 * (u - 0.5), 0, 1)
    eye = np.hypot(u - 0.66, v + 0.08)
    tone = stripes * (1 - head) + 0.4 * head
    tone = np.where(eye < 0.12, np.where(eye < 0.065, -2.2, 2.2), tone)
    return np.maximum(body, np.maximum(0.7 * tail, 0.7 * fin)), tone


def _kelp(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    v = v - rng.uniform(-0.3, 0.3) * (1 - u * u)
    taper = np.clip(1 - u * u, 0, 1) ** 1.2 * (1 - 0.35 * u)
    blade = rng.uniform(0.34, 0.44) * taper * (1 + 0.1 * np.cos(rng.uniform(14, 20) * u))
    veins = np.cos(rng.uniform(17, 21) * (u - 0.9 * np.abs(v)))
    tone = np.tanh(3 * (veins - 0.2)) + 2.5 * np.exp(-((v / 0.05) ** 2))
    return blade + 0.03 * (1 - u * u) - np.abs(v), tone


def _pebble(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    v = v * rng.uniform(1.0, 1.7)
    theta = np.arctan2(v, u)
    edge = 0.92 + 0.08 * np.cos(2 * theta + rng.uniform(0, 6)) + 0.04 * np.cos(3 * theta)
    blotches = np.cos(3 * u + rng.uniform(0, 6)) * np.cos(3 * v)
    grain = rng.standard_normal(u.shape, np.float32)
    return edge - np.hypot(u, v), 0.5 * blotches + 0.35 * grain


def _banded_pebble(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    inside, _ = _pebble(u, v, rng)
    bend = rng.uniform(-0.4, 0.4)
    return inside, np.tanh(3 * np.cos(rng.uniform(5, 12) * (u + bend * v * v)))


def _strand(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    sway = rng.uniform(0.05, 0.25) * np.sin(rng.uniform(2, 5) * u + rng.uniform(0, 6))
    return rng.uniform(0.02, 0.06) * (1.05 - u * u) - np.abs(v - sway), np.cos(40 * u)


def _fragment(u: Plane, v: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    inside, tone = _CREATURES[rng.integers(len(CLASSES))][0](u, v, rng)
    angle = rng.uniform(0, 2 * np.pi)
    across, along = np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u
    return np.minimum(inside, across - rng.uniform(0.35, 0.5) + 0.08 * np.sin(11 * along)), tone


# By class id: the outline, and the factor that gives all classes about the same area at one size.
_CREATURES: tuple[tuple[Outline, float], ...] = (
    (_starfish, 1.2),
    (_urchin, 0.85),
    (_scallop, 0.95),
    (_fish, 1.25),
    (_kelp, 1.4),
)
# Outline, how often, and the smallest and largest size as parts of the picture's short side.
_CLUTTER: tuple[tuple[Outline, float, float, float], ...] = (
    (_pebble, 0.34, 0.03, 0.2),
    (_banded_pebble, 0.2, 0.05, 0.2),
    (_strand, 0.2, 0.15, 0.45),
    (_fragment, 0.16, 0.08, 0.25),
)

# Colors of creatures and clutter, BGR in 0..1: coral, ochre, cream, rose, violet, slate blue, teal,
# olive, umber, stone.
_PIGMENTS = np.float32(
    [
        (0.35, 0.45, 0.93),
        (0.27, 0.62, 0.88),
        (0.70, 0.86, 0.95),
        (0.60, 0.45, 0.85),
        (0.68, 0.38, 0.52),
        (0.72, 0.52, 0.33),
        (0.62, 0.64, 0.22),
        (0.27, 0.55, 0.50),
        (0.22, 0.33, 0.50),
        (0.62, 0.64, 0.66),
    ]
)
# What a class mostly wears, as indices into the pigments. Habits help a young network along; they
# overlap and have exceptions, so that color alone does not tell the classes apart.
_HABITS = ((0, 1), (4,), (2, 3), (5, 1), (6, 7))
_HABIT_SHARE = 0.95
_CLUTTER_HABITS = (8, 9)
# Colors of the ground: sand, wet sand, rock, deep water, weed.
_GROUNDS = np.float32(
    [
        (0.52, 0.68, 0.78),
        (0.36, 0.47, 0.56),
        (0.42, 0.40, 0.38),
        (0.52, 0.44, 0.24),
        (0.36, 0.46, 0.33),
    ]
)


@dataclass
class _Sprite:
    """A drawn shape on its patch of the picture; the planes cover ``window``."""

    label: int | None
    window: tuple[EllipsisType | slice, ...]
    alpha: Plane
    shadow: Plane
    color: Plane
    full_area: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.alpha > 0.5


class _Scene:
    """One picture in the making."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.short_side = min(width, height)
        angle = rng.uniform(0, 2 * np.pi)
        self.light = np.float32([np.cos(angle), np.sin(angle)])
        self.owner = np.full((height, width), -1, np.int32)
        self.sprites: list[_Sprite] = []

    def noise(self, cell: float) -> Plane:
        """Smooth noise, mean 0 and deviation about 1, with features of ``cell`` pixels."""
        shape = (int(self.height / cell) + 3, int(self.width / cell) + 3)
        coarse = 1.4 * self.rng.standard_normal(shape, np.float32)
        size = (int(shape[1] * cell) + 1, int(shape[0] * cell) + 1)
        fine = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        return fine[: self.height, : self.width]

    def palette_color(self, label: int | None) -> Plane:
        """A BGR color in 0..1 from the palette that creatures and clutter share."""
        pigments = _CLUTTER_HABITS if label is None else _HABITS[label]
        if self.rng.random() > _HABIT_SHARE:
            pigments = range(len(_PIGMENTS))
        pigment = _PIGMENTS[self.rng.choice(pigments)] * self.rng.uniform(0.6, 1.1)
        return _channels(np.clip(pigment + self.rng.normal(0, 0.05, 3), 0.04, 1))

    def draw(self, outline: Outline, radius: float, label: int | None) -> _Sprite:
        """Draw a shape at a random place and angle, its center in view."""
        rng = self.rng
        center = rng.uniform(0.04, 0.96, 2) * (self.width, self.height)
        # The current turns everything the same way, more or less.
        angle, flip = rng.uniform(-0.6, 0.6), _sign(rng)
        reach = int(np.ceil(1.1 * radius)) + _SHADOW_REACH
        x0, y0 = (int(c) - reach for c in center)
        x = (np.arange(x0, x0 + 2 * reach, dtype=np.float32) - np.float32(center[0])) / radius
        y = (np.arange(y0, y0 + 2 * reach, dtype=np.float32) - np.float32(center[1])) / radius
        cos, sin = math.cos(angle), math.sin(angle)
        u = cos * x + sin * y[:, None]
        v = flip * (cos * y[:, None] - sin * x)
        inside, tone = outline(u, v, rng)
        alpha, tone = np.clip(0.5 + inside * radius, 0, 1), np.tanh(tone)
        drift = np.float32([[1, 0, 3 * self.light[0]], [0, 1, 3 * self.light[1]]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, drift, alpha.shape[::-1]), (0, 0), 2.5)

        # The outline bulges towards its middle, the texture adds a relief: both catch the light.
        height = np.sqrt(np.clip(inside, 0, 0.45)) + 0.03 * tone
        slope_y, slope_x = np.gradient(height * radius)
        shading = 1 + 0.4 * np.tanh(self.light[0] * slope_x + self.light[1] * slope_y)
        base = self.palette_color(label)
        contrast = rng.uniform(0.3, 0.55) * _sign(rng)
        marks = np.clip(base + contrast * (0.5 + base), 0.03, 1)
        color = (base + (marks - base) * (0.5 + 0.5 * tone)) * shading

        top, left = max(y0, 0), max(x0, 0)
        bottom, right = min(y0 + 2 * reach, self.height), min(x0 + 2 * reach, self.width)
        crop = np.s_[..., top - y0 : bottom - y0, left - x0 : right - x0]
        window = np.s_[..., top:bottom, left:right]
        area = float(np.count_nonzero(alpha > 0.5))
        return _Sprite(label, window, alpha[crop], shadow[crop], color[crop], area)

    def add(self, sprite: _Sprite) -> bool:
        """Put a sprite on top of the scene, unless it or one below it would be nearly hidden."""
        owner = self.owner.copy()
        owner[sprite.window][sprite.mask] = len(self.sprites)
        sprites = [*self.sprites, sprite]
        visible = np.bincount(owner[owner >= 0], minlength=len(sprites))
        for index, other in enumerate(sprites):
            if other.label is None:
                continue
            if visible[index] < _MIN_VISIBLE * other.full_area:
                return False
            if min(_box(owner == index)[2:]) < _MIN_BOX_SIDE:
                return False
        self.owner, self.sprites = owner, sprites
        return True

    def ground(self) -> Plane:
        """Noise of several sizes in two colors, with ripples, of shape (3, height, width)."""
        first, second = self.rng.choice(len(_GROUNDS), 2, replace=False)
        base, other = _channels(_GROUNDS[first]), _channels(_GROUNDS[second])
        warp = self.noise(60)
        mix = 0.5 * warp + 0.35 * self.noise(18) + self.rng.uniform(0.1, 0.35) * self.noise(5)
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        angle, pitch = self.rng.uniform(0, np.pi), self.rng.uniform(0.15, 0.4)
        ripples = np.sin(pitch * (np.cos(angle) * x + np.sin(angle) * y) + 2 * warp)
        grain = self.rng.standard_normal((self.height, self.width), np.float32)
        relief = 1 + self.rng.uniform(0, 0.12) * ripples + self.rng.uniform(0.01, 0.05) * grain
        return (base + (other - base) * (0.5 + 0.5 * np.tanh(mix))) * relief

    def photograph(self, image: Plane) -> Plane:
        """Light falling off across the scene, caustics of the water, a tint; then blur and noise.

        Takes (3, height, width), returns (height, width, 3).
        """
        rng = self.rng
        y, x = np.mgrid[-1 : 1 : self.height * 1j, -1 : 1 : self.width * 1j].astype(np.float32)
        falloff = 1 - rng.uniform(0.05, 0.4) * (self.light[0] * x + self.light[1] * y)
        caustics = np.exp(-6 * np.abs(self.noise(34) + 0.3 * self.noise(12)))
        light = rng.uniform(0.75, 1.08) * falloff + rng.uniform(0, 0.3) * caustics
        image = image * light * _channels(rng.uniform(0.85, 1.1, 3))
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.9))
        return image + rng.uniform(0.006, 0.02) * rng.standard_normal(image.shape, np.float32)

    def compose(self) -> NDArray[np.uint8]:
        """Paint the ground, then every sprite with its shadow, back to front."""
        image = self.ground()
        for sprite in self.sprites:
            below = image[sprite.window] * (1 - 0.45 * sprite.shadow)
            image[sprite.window] = below + sprite.alpha * (sprite.color - below)
        return np.uint8(np.clip(255 * self.photograph(image), 0, 255))


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _channels(color: NDArray) -> Plane:
    """A color that broadcasts over planes: channels first, which NumPy multiplies far faster."""
    return color.astype(np.float32)[:, None, None]


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The tight box of a mask as (x, y, width, height)."""
    return cv2.boundingRect(mask.astype(np.uint8))


def draw_scene(
    rng: np.random.Generator, width: int = 256, height: int = 192
) -> tuple[NDArray[np.uint8], list[dict]]:
    """Draw one picture and annotate what can be seen in it.

    Args:
        rng: Source of all choices.
        width: Picture width in pixels.
        height: Picture height in pixels.

    Returns:
        The BGR picture, uint8 of shape (height, width, 3), and its objects: dicts with ``label``
        (index into :data:`CLASSES`), ``bbox`` (x, y, width, height of the visible part in pixels)
        and ``area`` (number of visible pixels).
    """
    scene = _Scene(rng, width, height)
    wanted: list[tuple[Outline, float, int | None]] = []
    for label in rng.integers(len(CLASSES), size=rng.integers(4, 10)):
        outline, factor = _CREATURES[label]
        size = math.exp(rng.uniform(math.log(0.1), math.log(0.4)))
        wanted.append((outline, size * factor, int(label)))
    shares = np.array([clutter[1] for clutter in _CLUTTER])
    for kind in rng.choice(len(_CLUTTER), size=rng.integers(1, 5), p=shares / shares.sum()):
        outline, _, least, most = _CLUTTER[kind]
        wanted.append((outline, rng.uniform(least, most), None))
    for position in rng.permutation(len(wanted)):
        outline, size, label = wanted[position]
        for _ in range(5):
            if scene.add(scene.draw(outline, size * scene.short_side, label)):
                break
    objects = []
    for index, sprite in enumerate(scene.sprites):
        if sprite.label is not None:
            mask = scene.owner == index
            area = int(np.count_nonzero(mask))
            objects.append(dict(label=sprite.label, bbox=list(_box(mask)), area=area))
    return scene.compose(), objects


@dataclass(frozen=True)
class ToyShapes:
    """The data set: what determines it, to the byte, and how it gets onto the disk.

    Args:
        num_train: Pictures in the training split.
        num_val: Pictures in the validation split.
        width: Picture width in pixels.
        height: Picture height in pixels.
        seed: Seed of all drawing. The splits never share a random stream.

    Raises:
        ValueError: If a number makes no data set.

    Example:
        >>> root = ToyShapes(num_train=16, num_val=4).write('data/toyshapes')
    """

    num_train: int = 560
    num_val: int = 120
    width: int = 256
    height: int = 192
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ('num_train', 1, 1_000_000),
            ('num_val', 1, 1_000_000),
            ('width', 64, 4096),
            ('height', 64, 4096),
            ('seed', 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f'{name} must be a whole number, got {value!r}')
            if not least <= value <= most:
                raise ValueError(f'{name} must lie in {least}..{most}, got {value}')

    def write(self, root: str | os.PathLike[str]) -> Path:
        """Write ``{train,val}/*.jpg`` and ``annotations/{train,val}.json``, COCO format.

        The set appears under its name only when it is complete. A complete set of the same
        parameters is left as it is; one of other parameters is replaced, and one that has lost
        files or parts of its annotations is drawn again, with a warning.

        Args:
            root: The folder of the data set; its parents are created.

        Returns:
            The folder, as a path.

        Raises:
            FileExistsError: If the folder holds anything that this class did not write.
        """
        root = Path(root)
        found = self._found_in(root)
        if found == 'whole':
            return root
        if found == 'damaged':
            warnings.warn(f'{root} is incomplete or damaged: it is drawn again.', stacklevel=2)
        root.parent.mkdir(parents=True, exist_ok=True)
        # A folder inside the temporary one, because that one is closed to other users.
        with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as temporary:
            new = Path(temporary, 'new')
            for split_id, (split, count) in enumerate(self._splits().items()):
                self._write_split(new, split, split_id, count)
            _write_json(new / _MARKER, self._marker())
            # Whoever else was drawing the same set may have finished first.
            if self._found_in(root) != 'whole':
                if root.exists():
                    os.replace(root, Path(temporary, 'old'))
                os.replace(new, root)
        return root

    def _splits(self) -> dict[str, int]:
        return dict(train=self.num_train, val=self.num_val)

    def _marker(self) -> dict[str, int]:
        return dict(generator=_GENERATOR_VERSION, **asdict(self))

    def _found_in(self, root: Path) -> str | None:
        """Say what lies in ``root``; raise if that is something foreign.

        Returns:
            ``'whole'`` for this very set, ``'other'`` for one of other parameters, ``'damaged'``,
            or None for nothing.
        """
        if not root.exists():
            return None
        found = {entry.name for entry in root.iterdir()} if root.is_dir() else {root.name}
        if not found:
            return None
        if not {_MARKER} <= found <= {*self._splits(), 'annotations', _MARKER}:
            raise FileExistsError(
                f'{root} holds something else than this data set: '
                'remove it, or name a folder that is empty or does not exist'
            )
        try:
            if json.loads((root / _MARKER).read_text()) != self._marker():
                return 'other'
            for split, count in self._splits().items():
                coco = json.loads((root / 'annotations' / f'{split}.json').read_text())
                if not len(coco['images']) == len(list(root.glob(f'{split}/*.jpg'))) == count:
                    return 'damaged'
        except (OSError, ValueError, LookupError, TypeError):
            return 'damaged'
        return 'whole'

    def _write_split(self, root: Path, split: str, split_id: int, count: int) -> None:
        (root / split).mkdir(parents=True)
        (root / 'annotations').mkdir(exist_ok=True)

        def write_image(index: int) -> list[dict]:
            rng = np.random.default_rng([self.seed, split_id, index])
            image, objects = draw_scene(rng, self.width, self.height)
            _, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            (root / split / f'{index:06d}.jpg').write_bytes(encoded.tobytes())
            return objects

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects_of = list(pool.map(write_image, range(count)))
        size = dict(width=self.width, height=self.height)
        flat = [(image, found) for image, objects in enumerate(objects_of) for found in objects]
        coco = dict(
            info=dict(description=f'rock pool, {split}', **self._marker()),
            licenses=[],
            categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)],
            images=[dict(id=i, file_name=f'{i:06d}.jpg', **size) for i in range(count)],
            annotations=[
                dict(id=i, image_id=image, category_id=found.pop('label') + 1, iscrowd=0, **found)
                for i, (image, found) in enumerate(flat, start=1)
            ],
        )
        _write_json(root / 'annotations' / f'{split}.json', coco)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')
