"""Procedural video with exact masks, in the manner of BL30K: rendered on the CPU, the same bytes on every machine.

`recipe` says what scenes look like, `build` makes a `scene` of it (from `meshes`, `user_meshes`, `bodies`, `motion`,
`placement`, `textures`, `exposure`), and `render` draws it (`drawing`: `raster`, `shadows`, `shading`). `truth` adds
flow, depth and amodal masks, which `encodings` stores.
"""

from vosforge.data.rendering import encodings, truth
from vosforge.data.rendering.build import build_scene
from vosforge.data.rendering.recipe import PRESETS, SceneRecipe, preset
from vosforge.data.rendering.render import render_clip, render_frame
from vosforge.data.rendering.scene import Scene

__all__ = [
    "PRESETS",
    "Scene",
    "SceneRecipe",
    "build_scene",
    "encodings",
    "preset",
    "render_clip",
    "render_frame",
    "truth",
]
