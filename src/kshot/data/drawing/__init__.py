"""Generated pictures and names: unlimited data with known truth, for tests, demonstrations and the embedded model.

Three small worlds, all drawn with numpy and Pillow alone: invented characters (:mod:`glyphs`), scenes of coloured shapes whose
attributes define hidden tasks (:mod:`scenes`), and invented names for them (:mod:`names`). Everything derives from the integers
that are passed in, so that any process, in any order, draws the same.
"""

from kshot.data.drawing.glyphs import draw_glyph
from kshot.data.drawing.names import invent_name, random_letters
from kshot.data.drawing.scenes import SCENE_TASKS, Scene, is_held_out

__all__ = ["SCENE_TASKS", "Scene", "draw_glyph", "invent_name", "is_held_out", "random_letters"]
