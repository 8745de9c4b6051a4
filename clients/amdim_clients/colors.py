"""Any Pillow mode to 8-bit RGB over white in sRGB, part of the preprocessing definition.

Exists because each of Pillow's own conversions is wrong for somebody: alpha is dropped, 16 bits
are clipped, profiles are ignored. Knows no file formats and no sizes.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# Rows handled at a time, so that a large picture is never held in several modes at once.
_STRIP_ROWS = 512
# A CMYK press profile has about 1 MB; beyond this it is no profile worth the time.
_MAX_PROFILE_BYTES = 4 << 20
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
# Full scales of samples without a stated range; the smallest that holds the maximum is meant.
_FULL_SCALES = (255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as 8-bit RGB, alpha over white, in sRGB.

    Args:
        image: Loaded, at any size; `info` holds its transparency and profile.

    Returns:
        A new image in mode RGB, or `image` itself where nothing had to change.

    Raises:
        OSError, ValueError: Pillow cannot convert the mode.
    """
    profile = image.info.get("icc_profile")
    was_grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    flat = _flatten(image)
    if profile and isinstance(profile, bytes):
        grey_profile = was_grey and flat.mode == "RGB"
        flat = _to_srgb(flat.convert("L") if grey_profile else flat, profile)
    return flat if flat.mode == "RGB" else flat.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """The image as L, RGB or CMYK, without alpha and with 8 bits a channel."""
    if image.mode in ("L", "RGB", "CMYK") and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bits(image)
    has_alpha = image.has_transparency_data
    flat = Image.new("RGB", image.size, (255, 255, 255))
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        if has_alpha:
            rgba = _to_rgba(strip)
            flat.paste(rgba, (0, top), rgba)
        else:
            flat.paste(strip.convert("RGB"), (0, top))
    return flat


def _to_rgba(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")
    elif strip.mode == "1":
        # Pillow marks a transparent bit by its 8-bit value.
        transparency = strip.info.get("transparency")
        strip = strip.convert("L")
        strip.info["transparency"] = transparency
    return strip.convert("RGBA")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """A deep grey image (I;16, I or F) as L: 16 bits are divided by 257 and rounded.

    I and F have no stated range: the smallest of 1 (F only), 255, 65535, 2**31 - 1, 2**32 - 1
    that holds the maximum is taken for white, negative and not finite samples for black.
    """
    low_to_high = [np.asarray(_rows(image, top)) for top in range(0, image.height, _STRIP_ROWS)]
    if image.mode.startswith("I;16"):
        full_scale = 65535.0
    else:
        highest = max(float(np.nan_to_num(rows, posinf=0.0).max()) for rows in low_to_high)
        scales = (1.0, *_FULL_SCALES) if image.mode == "F" else _FULL_SCALES
        full_scale = next((scale for scale in scales if highest <= scale), highest)
    transparent = image.info.get("transparency")
    flat = Image.new("L", image.size)
    for index, rows in enumerate(low_to_high):
        finite = np.nan_to_num(rows.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        grey = np.clip(np.rint(finite * (255.0 / full_scale)), 0, 255).astype(np.uint8)
        if isinstance(transparent, int):
            grey[rows == transparent] = 255
        flat.paste(Image.fromarray(grey), (0, index * _STRIP_ROWS))
    return flat


def _rows(image: Image.Image, top: int) -> Image.Image:
    return image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The image in sRGB; unchanged where the profile is broken or of another colour space."""
    if len(profile) > _MAX_PROFILE_BYTES:
        return image
    transform = _srgb_transform(profile, image.mode)
    if transform is None:
        return image
    if image.mode == "RGB":
        return transform.apply_in_place(image)  # the caller's, and a copy would double the memory
    return transform.apply(image)


@lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of one profile to sRGB, or None where there is nothing to do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = source.profile.profile_description or ""
        space = (source.profile.xcolor_space or "").strip()
        if _PROFILE_SPACES.get(mode) != space or (mode == "RGB" and "sRGB" in description):
            return None
        return ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            flags=ImageCms.Flags.NOCACHE,  # transforms are shared between decode threads
        )
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return None
