"""Pictures to a video that browsers play: VP9 in an .mp4, through the encoder that OpenCV's wheel brings.

VP9 is meant to be free of royalties, and its library (libvpx) is under a BSD licence with a grant of patents. H.264
would play on a few more old devices, but its free encoder (x264) is under the GPL and its patents are licensed for
money, so nothing here makes it. Chrome, Edge, Firefox, and Safari from 2020 on, play VP9.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import cv2

from fusionocc_core.viz.canvas import Picture

SUFFIX = ".mp4"

CODEC = "vp09"
"""Four-letter code of VP9 in such files."""


class VideoWriter:
    """Writes pictures of one size; the file appears at the end of the ``with``, whole, or not at all.

    Args:
        path: of an .mp4 file.
        fps: pictures a second.

    Raises:
        ValueError: another ending, or no rate.
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        if path.suffix != SUFFIX:
            raise ValueError(f"{path}: expected a file name that ends in {SUFFIX}")
        if not 0 < fps <= 120:
            raise ValueError(f"fps={fps}: expected more than 0, up to 120 pictures a second")
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.resolve().parent}")
        self.path, self.fps = path, fps
        self.count = 0
        """Pictures written."""
        self._unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:  # nothing was written, or it is closed already
            return
        self._writer.release()
        self._writer = None
        if kind is None:
            self._unfinished.replace(self.path)
        else:
            self._unfinished.unlink(missing_ok=True)

    def write(self, picture: Picture) -> None:
        """Append a picture (H, W, 3) with even sides.

        Raises:
            ValueError: a side is odd, or another size than before.
            OSError: this OpenCV has no encoder, or the file cannot be written.
        """
        height, width = picture.shape[:2]
        if self._writer is None:
            if height % 2 or width % 2:
                raise ValueError(f"picture of {width}x{height}: video wants even sides")
            self._size = (width, height)
            code = cv2.VideoWriter.fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self._unfinished), cv2.CAP_FFMPEG, code, self.fps, self._size)
            if not self._writer.isOpened():
                raise OSError(
                    f"{self.path}: this OpenCV ({cv2.__version__}) cannot write VP9 there; is the folder writable? the "
                    "wheels opencv-python-headless bring the encoder, some distributions' packages do not"
                )
        if (width, height) != self._size:
            raise ValueError(f"picture of {width}x{height}: the video's first was {self._size[0]}x{self._size[1]}")
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.count += 1
