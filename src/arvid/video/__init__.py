"""Video: in files (`files`) and as pictures of its frames (`pictures`).

Knows: which names other rooms use. Does not know: how any of it is done.
"""

from arvid.video.files import (
    Reel,
    VideoWriter,
    enlarge,
    fitted,
    frames_of,
    open_video,
    read_picture,
    read_video,
    to_bytes,
    upright,
)
from arvid.video.pictures import MAKERS, Album, Maker, Strip, contact_sheet, side_by_side

__all__ = [
    "Album",
    "MAKERS",
    "Maker",
    "Reel",
    "Strip",
    "VideoWriter",
    "contact_sheet",
    "enlarge",
    "fitted",
    "frames_of",
    "open_video",
    "read_picture",
    "read_video",
    "side_by_side",
    "to_bytes",
    "upright",
]
