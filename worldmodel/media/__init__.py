"""Output of frames as mp4, gif and contact sheet, galleries and plots.

A :class:`Strip` is a sequence of frames with its actions; :func:`save` writes several side by side::

    save("dream.mp4", [dream_strip(seen, frames, names)], rate=8.75)
    save("beside.gif", triptych(truth, reconstruction, dream), rate=8.75, labels="names")
"""

from worldmodel.media.compose import (
    Labels,
    Strip,
    action_names,
    canvases,
    colours,
    contact_sheet,
    dream_strip,
    gallery,
    triptych,
)
from worldmodel.media.write import save, save_png

__all__ = ["Labels", "Strip", "action_names", "canvases", "colours", "contact_sheet", "dream_strip"]
__all__ += ["gallery", "save", "save_png", "triptych"]
