"""How far each corruption moves an image, beside the package that ImageNet-C's are made with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ssl_bench.transforms.corruptions import KINDS, SEVERITIES, corrupt

SIDE = 224
PUBLISHED = {
    "gaussian_noise": (0.0783, 0.1161, 0.1696, 0.2318, 0.3027),
    "shot_noise": (0.0874, 0.1327, 0.1852, 0.2672, 0.3254),
    "impulse_noise": (0.0947, 0.1336, 0.1639, 0.2257, 0.2840),
    "defocus_blur": (0.0628, 0.0693, 0.0795, 0.0867, 0.0932),
    "glass_blur": (0.0696, 0.0682, 0.0919, 0.0864, 0.0909),
    "motion_blur": (0.0693, 0.0852, 0.1011, 0.1156, 0.1244),
    "zoom_blur": (0.0895, 0.1007, 0.1049, 0.1125, 0.1177),
    "snow": (0.1839, 0.2963, 0.2966, 0.3549, 0.4107),
    "procedural_frost": (0.2510, 0.2975, 0.3220, 0.3069, 0.3201),
    "fog": (0.1709, 0.1899, 0.2090, 0.2103, 0.2201),
    "brightness": (0.0804, 0.1587, 0.2298, 0.2915, 0.3362),
    "contrast": (0.1264, 0.1474, 0.1685, 0.1896, 0.2001),
    "elastic_transform": (0.0742, 0.0837, 0.0937, 0.0998, 0.1068),
    "pixelate": (0.0447, 0.0498, 0.0575, 0.0650, 0.0696),
    "jpeg_compression": (0.0549, 0.0593, 0.0619, 0.0688, 0.0765),
}
"""Root mean square difference to the clean `scenes`, of values from 0 to 1, at each severity.

By ``imagecorruptions`` 1.1.2 with NumPy 1.26.4, OpenCV 4.10.0, Pillow 13.0.0 and scikit-image
0.20.0, whose ``multichannel=True`` is ``channel_axis=-1`` by now; the mean square over eight draws
of motion blur, snow, frost and fog, over one of glass blur, and over two of the others.
"""
TOLERANCE = {
    "motion_blur": 0.06,
    "fog": 0.06,  # few draws of few clouds
    "pixelate": 0.06,  # their cells are whole pixels
    "procedural_frost": 0.25,  # other ice than theirs
}
"""How far ours may be from theirs, as a share; 3 % elsewhere."""


def scenes() -> npt.NDArray[np.uint8]:
    """Six images with a photograph's edges and spectrum: ``(6, SIDE, SIDE, 3)``."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    frequency[0, 0] = np.inf

    def texture() -> npt.NDArray[np.float64]:
        """As strong at each octave, with a mean of 0 and a deviation of 1."""
        noise = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
        values = np.fft.irfft2(noise / frequency, (SIDE, SIDE))
        return values / values.std()

    images = []
    for _ in range(6):
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
        image = 0.45 + 0.3 * slope[..., None] * np.ones(3)
        for _ in range(8):
            place, radii = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2)
            across, down = np.abs(x - place[0]) / radii[0], np.abs(y - place[1]) / radii[1]
            is_round = rng.random() < 0.5
            inside = across**2 + down**2 < 1 if is_round else np.maximum(across, down) < 1
            image[inside] = rng.uniform(0.05, 0.95, 3)
        grey = 0.1 * texture()
        image += grey[..., None] + 0.03 * np.stack([texture() for _ in range(3)], axis=-1)
        images.append(np.round(255 * image.clip(0, 1)).astype(np.uint8))
    return np.stack(images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_as_strong_as_the_published_one(kind: str) -> None:
    images = torch.from_numpy(scenes()).movedim(-1, 1).float() / 255
    made = (corrupt(images, kind, severity, 0, torch.arange(6)) for severity in SEVERITIES)
    found = [(each - images).square().mean().sqrt().item() for each in made]
    assert found == pytest.approx(PUBLISHED[kind], rel=TOLERANCE.get(kind, 0.03))
