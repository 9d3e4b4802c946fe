"""Videos as inputs: folders of frames with the first box of an object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tutelage.data.decode import read_headers
from tutelage.data.formats.folder import Files
from tutelage.data.formats.frame_files import FrameFiles
from tutelage.data.formats.videos import LAYOUT, Video, subfolders, track_labels, videos_in
from tutelage.data.frames import Frames
from tutelage.data.inputs.inputs import Inputs
from tutelage.data.split import Split
from tutelage.data.targets import Track
from tutelage.errors import TutelageError


def video_inputs(paths: Sequence[Path], shape: tuple[int, ...]) -> Inputs:
    """Videos to track an object in, from its first box on: folders of frames, or folders of such folders.

    A video is as in ``load``, but its text file may have fewer lines than there are frames: the first box suffices.

    Args:
        paths: the folders.
        shape: (C, S, S + T) of the network's pairs of crops.

    Raises:
        TutelageError: a folder is missing, or has no frames or no box.
    """
    videos: list[Video] = []
    for path in map(Path.absolute, paths):  # so that the current folder has a name, too
        if not path.is_dir():
            raise TutelageError(f"there is no folder {path}; name folders of frames with groundtruth_rect.txt in them")
        inside = videos_in(path, None) or [video for part in subfolders(path) for video in videos_in(part, None)]
        if not inside:
            raise TutelageError(
                f"{path} has no box to start from; write groundtruth_rect.txt with x,y,w,h of the object in the first "
                f"frame beside the frames, or {LAYOUT}"
            )
        videos += inside
    files = Files("", tuple(name for video in videos for name in video.frames))
    sizes = [header.size for header in read_headers(files)]
    images = FrameFiles(files, (max(height for height, _ in sizes), max(width for _, width in sizes)), shape[0])
    labels = torch.cat([track_labels(video, number) for number, video in enumerate(videos)])
    return Inputs(
        noun="video",
        names=tuple(video.name for video in videos),
        split=Split.of(images, labels, Frames(shape[1]), Track()),
        outputs=tuple(video.name for video in videos),
        counts=torch.tensor([len(video.frames) for video in videos]),
    )
