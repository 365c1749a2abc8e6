"""The user's meshes: OBJ, GLB and PLY files made fit for the renderer.

Files come without promises: faces wound either way, missing normals and texture coordinates, any size and scale,
many materials. So faces are drawn from both sides, normals are made anew with creases at sharp edges, missing texture
coordinates are projected from the six sides of a box, and models too fine for a frame are made coarser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vosforge.data.rendering.meshes import Mesh, Model
from vosforge.data.rendering.numerics import cross, lengths
from vosforge.data.rendering.textures import resize
from vosforge.errors import UserError

SUFFIXES = (".obj", ".glb", ".ply")
MOST_BYTES = 256_000_000
MOST_TRIANGLES = 2_000_000
DRAWN_TRIANGLES = 30_000
_SHAPENET_FILE = "model_normalized.obj"
_LARGEST_LOOK = 512
# Side of a look that is a colour alone; pictures come out larger.
_PLAIN = 4
_MOST_MESHES = 64
_CREASE = 0.7071067811865476
# Coordinates keep this many binary places: what loaders compute with libraries may differ in the last bits.
_GRID = float(1 << 20)


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of a folder and all below with one of the suffixes, sorted; hidden ones and hidden folders left out."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir()]
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def find_meshes(folder: Path) -> list[str]:
    """Mesh files of a folder and all below, as paths within it, sorted; hidden ones do not count.

    In ShapeNet's layout, `<class>/<model>/models/model_normalized.obj`, only those files count.

    Raises:
        UserError: when the folder is missing or holds no mesh.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of meshes")
    names = sorted(str(path.relative_to(folder)) for path in files_below(folder, SUFFIXES))
    names = [name for name in names if name.endswith(_SHAPENET_FILE)] or names
    if not names:
        raise UserError(f"{folder}: expected OBJ, GLB or PLY meshes, found none")
    return names


def load_model(path: Path) -> Model:
    """A mesh file as a model.

    Args:
        path: an OBJ, GLB or PLY file; an OBJ's materials and textures lie beside it.

    Returns:
        Meshes, one a material, centred at the origin, the diagonal of their common box 1. If any has a texture, all
        have looks, plain ones of their material's colour. Transparency is ignored.

    Raises:
        UserError: when the file is unreadable, holds no triangle of any size, or is larger than 256 MB or 2,000,000
            triangles. Models of more than 30,000 are made coarser.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if size > MOST_BYTES:
        raise UserError(f"{path}: expected at most {MOST_BYTES:,} bytes, found {size:,}")
    meshes = [mesh for raw in _read(path) if (mesh := _convert(raw)) is not None]
    triangles = sum(len(mesh.faces) for mesh in meshes)
    if not triangles:
        raise UserError(f"{path}: expected triangles, found none with an area")
    if triangles > MOST_TRIANGLES:
        raise UserError(f"{path}: expected at most {MOST_TRIANGLES:,} triangles, found {triangles:,}")
    meshes = sorted(meshes, key=lambda mesh: len(mesh.faces), reverse=True)[:_MOST_MESHES]
    points = np.concatenate([mesh.points for mesh in meshes])
    low, high = points.min(axis=0), points.max(axis=0)
    diagonal = lengths(high - low)
    meshes = [replace(mesh, points=_on_grid((mesh.points - (low + high) / 2) / diagonal)) for mesh in meshes]
    side = 192
    while sum(len(mesh.faces) for mesh in meshes) > DRAWN_TRIANGLES and side > 4:
        meshes = [coarser for mesh in meshes if len((coarser := _coarser(mesh, side)).faces)]
        side = side * 3 // 4
    # Plain colours count only beside textures; a model of plain colours alone is covered like a drawn one.
    looks = any(mesh.look is not None and len(mesh.look) > _PLAIN for mesh in meshes)
    return Model(tuple(_finished(mesh, looks) for mesh in meshes))


def digest(model: Model) -> str:
    """Hex digest of all that a model's pixels depend on."""
    sha = hashlib.sha256()
    for mesh in model.meshes:
        for array in (mesh.points, mesh.normals, mesh.uvs, mesh.faces, mesh.look):
            if array is not None:
                sha.update(f"{array.shape} {array.dtype}".encode())
                sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class MeshFile:
    """One file of a folder: its model's digest, or why it is of no use."""

    name: str
    digest: str
    reason: str = ""


def survey(folder: Path, name: str) -> MeshFile:
    """Try a file."""
    try:
        return MeshFile(name, digest(load_model(folder / name)))
    except UserError as error:
        return MeshFile(name, "", str(error))


class MeshLibrary(Sequence[Model]):
    """The usable meshes of a folder, read when they are drawn. Of files with equal content the first stays.

    Args:
        folder: where they lie, on every node that renders.
        files: what `survey` said of each file, in any order.

    Raises:
        UserError: when none is usable.
    """

    def __init__(self, folder: Path, files: Sequence[MeshFile]) -> None:
        self.folder = folder
        self.skipped = sorted((file for file in files if file.reason), key=lambda file: file.name)
        files = sorted(files, key=lambda file: file.name, reverse=True)
        unique = {file.digest: file for file in files if not file.reason}
        self._files = sorted(unique.values(), key=lambda file: file.digest)
        if not self._files:
            raise UserError(f"{folder}: none of {len(files)} meshes can be used; {self.skipped[0].reason}")
        self.digest = hashlib.sha256("".join(file.digest for file in self._files).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Model:
        """Read a model again.

        Raises:
            UserError: when its file is gone or has another content than before.
        """
        file = self._files[index]
        return _load_known(self.folder / file.name, file.digest)


@lru_cache(maxsize=32)
def _load_known(path: Path, expected: str) -> Model:
    if not path.is_file():
        raise UserError(f"{path}: a mesh of the recipe is not here; every node needs the folder")
    model = load_model(path)
    if digest(model) != expected:
        raise UserError(f"{path}: this mesh has changed since the build began; start another build")
    return model


def _read(path: Path) -> list[Any]:
    """The geometries of a file, as trimesh's, each in its place."""
    # Only who brings meshes pays for the import.
    import trimesh

    try:
        scene = trimesh.load_scene(str(path), process=False)
        return [geometry for geometry in scene.dump() if isinstance(geometry, trimesh.Trimesh)]
    except Exception as error:  # trimesh's readers raise whatever goes wrong in them.
        raise UserError(f"{path}: expected a mesh, found a file that cannot be read ({error!r:.200})") from error


def _convert(raw: Any) -> Mesh | None:
    """A trimesh geometry without its normals; None when it holds no triangle of any size."""
    points, faces = np.asarray(raw.vertices, np.float64), np.asarray(raw.faces, np.int64)
    if not len(faces) or not np.isfinite(points).all():
        return None
    uvs = getattr(raw.visual, "uv", None)
    look = None
    material = getattr(raw.visual, "material", None)
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    if uvs is not None and len(uvs) == len(points) and np.isfinite(uvs).all():
        # Files put v = 0 at the bottom of a picture.
        uvs = np.stack([uvs[:, 0], 1.0 - uvs[:, 1]], axis=1).astype(np.float64)
        if image is not None and min(image.size) > 2:
            look = _square(np.asarray(image.convert("RGB")))
    else:
        uvs = None
    if look is None:
        colour = np.asarray(getattr(material, "main_color", (128, 128, 128)), np.uint8)[:3]
        look = np.broadcast_to(colour, (_PLAIN, _PLAIN, 3)).copy()
    kept = lengths(_area_vectors(points, faces))[:, 0] > 0
    if not kept.any():
        return None
    normals = np.zeros_like(points)
    return Mesh(points, normals, uvs, faces[kept].astype(np.int32), closed=False, look=look)


def _square(image: np.ndarray) -> np.ndarray:
    side = 2 * _PLAIN
    while side * 1.4 < min(max(image.shape[:2]), _LARGEST_LOOK):
        side *= 2
    return resize(image, side)


def _on_grid(points: np.ndarray) -> np.ndarray:
    return np.floor(points * _GRID + 0.5) / _GRID


def _area_vectors(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """`(F, 3)` normals of faces, as long as twice their areas."""
    first = points[faces[:, 0]]
    return cross(points[faces[:, 1]] - first, points[faces[:, 2]] - first)


def _finished(mesh: Mesh, looks: bool) -> Mesh:
    """With texture coordinates, creased normals, and only the vertices in use."""
    mesh = mesh if mesh.uvs is not None else _projected(mesh)
    normals = _creased_normals(mesh.points, mesh.faces)
    corner = mesh.faces.reshape(-1)
    # Faces that share a vertex and, but for rounding, a normal there keep sharing it.
    keys = np.concatenate([corner[:, None], np.floor(normals * 256 + 0.5)], axis=1)
    _, first, index = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    used = corner[first]
    return Mesh(
        mesh.points[used],
        normals[first],
        _on_grid(mesh.uvs[used]),
        index.reshape(-1, 3).astype(np.int32),
        closed=False,
        look=mesh.look if looks else None,
    )


def _projected(mesh: Mesh) -> Mesh:
    """Texture coordinates by projection along the axis that each face looks along most."""
    axis = np.abs(_area_vectors(mesh.points, mesh.faces)).argmax(axis=1)
    keys, index = np.unique(mesh.faces.astype(np.int64) * 3 + axis[:, None], return_inverse=True)
    points, along = mesh.points[keys // 3], keys % 3
    rows = np.arange(len(points))
    uvs = np.stack([points[rows, (along + 1) % 3], points[rows, (along + 2) % 3]], axis=1) * 2
    return replace(mesh, points=points, uvs=uvs, faces=index.reshape(-1, 3).astype(np.int32))


def _creased_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """`(F * 3, 3)` unit normals of corners: the mean, by area, of the faces about a point within 45 degrees.

    Each on its own face's side, whichever way the neighbours are wound.
    """
    vectors = _area_vectors(points, faces)
    units = vectors / np.maximum(lengths(vectors), 1e-30)
    _, point = np.unique(np.floor(points * 65536 + 0.5), axis=0, return_inverse=True)
    point = point.reshape(-1)[faces.reshape(-1)]
    order = np.argsort(point, kind="stable")
    face = np.arange(len(point)) // 3
    starts = np.searchsorted(point[order], np.arange(point.max() + 1))
    sizes = np.diff(np.append(starts, len(point)))
    normals = vectors[face].copy()
    # The n-th neighbour of every corner at once; points where very many faces meet make do with the first 64.
    for n in range(min(int(sizes.max()), 64)):
        has = n < sizes[point]
        neighbour = face[order[np.minimum(starts[point] + n, len(point) - 1)]]
        a, b = units[face], units[neighbour]
        angle = a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]
        near = has & (np.abs(angle) > _CREASE) & (neighbour != face)
        normals += vectors[neighbour] * (np.sign(angle) * near)[:, None]
    return normals / np.maximum(lengths(normals), 1e-30)


def _coarser(mesh: Mesh, side: int) -> Mesh:
    """Vertices of a cell of a grid, `side` cells a unit, merged into their mean, and faces that collapse left out."""
    cells = np.floor(mesh.points * side)
    _, cell, sizes = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cell = cell.reshape(-1)
    means = np.stack([np.bincount(cell, mesh.points[:, axis]) / sizes for axis in range(3)], axis=1)
    # Either side of a seam in the texture stays apart.
    patches = np.zeros((len(cell), 1)) if mesh.uvs is None else np.floor(mesh.uvs * 8)
    keys = np.concatenate([cell[:, None], patches], axis=1)
    _, first, index = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces]
    corners = cell[mesh.faces]
    distinct = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
    # Folds leave faces that lie on one another.
    _, kept = np.unique(np.sort(corners[distinct], axis=1), axis=0, return_index=True)
    faces = faces[distinct][np.sort(kept)].astype(np.int32)
    uvs = None if mesh.uvs is None else mesh.uvs[first]
    points = _on_grid(means[cell[first]])
    return replace(mesh, points=points, normals=np.zeros_like(points), uvs=uvs, faces=faces)
