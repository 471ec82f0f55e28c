"""Which frames of a video make a clip."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_bench.errors import require


@dataclass(frozen=True)
class Sampling:
    """So many frames, of which each is so many after the one before it.

    One frame is an image: a data set of clips is one of images then.
    """

    frames: int
    stride: int = 1

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last of the clip, both counted."""
        return (self.frames - 1) * self.stride + 1

    def centre(self, length: int, what: str) -> int:
        """The first frame of the clip in the middle of a video of that length.

        Raises:
            UserError: the video, named by ``what``, is shorter than the clip.
        """
        fitting = (length - 1) // max(1, self.frames - 1)
        hint = f"--frames {(length - 1) // self.stride + 1}"
        hint += f" or --stride {fitting}" if fitting else ""
        require(
            self.span <= length,
            f"{self.frames} frames of stride {self.stride} span {self.span}, and {what} has "
            f"{length}; {hint} would work",
        )
        return (length - self.span) // 2


def chosen(usual: Sampling, frames: int | None, stride: int | None) -> Sampling:
    """The usual sampling, but for what is given."""
    return Sampling(frames or usual.frames, stride or usual.stride)
