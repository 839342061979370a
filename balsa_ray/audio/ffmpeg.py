"""Recordings that libsndfile can't read (AAC in MP4, WebM, video files, …), through FFmpeg's libraries by PyAV."""

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt


class FFmpegFile:
    """A recording with the part of `soundfile.SoundFile`'s interface that decoding uses.

    Attributes:
        samplerate: In Hz.
        channels: How many.
        frames: Length in samples by the header; 0 if it doesn't say.
    """

    def __init__(self, source: str | IO[bytes]) -> None:
        """Opens the first audio stream.

        Raises:
            OSError: FFmpeg can't read it either, there is no audio in it, or PyAV is not installed.
        """
        try:
            import av
        except ImportError as error:
            raise OSError(str(error)) from error
        self._failure = av.FFmpegError
        try:
            # A playlist may name other files; none of them is fetched from a network.
            self._container = av.open(source, metadata_errors="replace", options={"protocol_whitelist": "file"})
        except self._failure as error:
            raise OSError(error.strerror) from error
        if not self._container.streams.audio or self._container.streams.audio[0].codec_context is None:
            self._container.close()
            raise OSError("no audio stream")
        stream = self._container.streams.audio[0]
        self.samplerate, self.channels = int(stream.rate or 0), int(stream.channels)
        length = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else (
            (self._container.duration or 0) / av.time_base
        )  # fmt: skip
        self.frames = round(length * self.samplerate)
        self._blocks = self._decoded(av.AudioResampler("fltp"))
        self._rest = np.empty((0, self.channels), np.float32)

    def __enter__(self) -> "FFmpegFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def seek(self, frames: int) -> None:
        """Passes over samples; by decoding them, since only that lands on the exact one in every format."""
        while frames > 0 and (passed := len(self.read(min(frames, self.samplerate)))):
            frames -= passed

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> npt.NDArray[np.float32]:
        """Returns up to `frames` samples `[n, channels]`, fewer only at the end.

        Raises:
            OSError: The recording is broken from here on.
        """
        blocks, have = [self._rest], len(self._rest)
        while have < frames and (block := next(self._blocks, None)) is not None:
            blocks.append(block)
            have += len(block)
        joined = np.concatenate(blocks)
        self._rest = joined[frames:]
        return joined[:frames]

    def _decoded(self, to_float: Any) -> Iterator[npt.NDArray[np.float32]]:
        try:
            for frame in self._container.decode(audio=0):
                for planes in to_float.resample(frame):
                    yield planes.to_ndarray().T
        except self._failure as error:
            raise OSError(error.strerror) from error
