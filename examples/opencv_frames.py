"""Upscale a video with OpenCV, whose frames are BGR; no more than two frames wait at a time."""

import sys
from collections.abc import Iterator

import cv2
import numpy as np

import tilefuse


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Give the frames of a video, uint8 [H, W, 3] BGR."""
    while (read := video.read())[0]:
        yield read[1]


def main(source: str, target: str) -> None:
    """Write the upscaled video."""
    engine = tilefuse.load("espcn-x2")
    video = cv2.VideoCapture(source)
    rate, codec = video.get(cv2.CAP_PROP_FPS), cv2.VideoWriter.fourcc(*"MJPG")
    size = [2 * int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    writer = cv2.VideoWriter(target, codec, rate, size)
    for frame in engine.stream(frames(video), look_ahead=2, bgr=True):
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
