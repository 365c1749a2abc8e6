"""Procedural video with exact masks, in the manner of BL30K: rendered on the CPU, the same bytes on every machine."""

from vosforge.data.rendering.recipe import SceneRecipe
from vosforge.data.rendering.render import render_clip, render_frame
from vosforge.data.rendering.scene import Scene, build_scene

__all__ = ["Scene", "SceneRecipe", "build_scene", "render_clip", "render_frame"]
