"""Tells image formats from their first bytes, and whether a file ends before its picture does.

Exists so that refusals have stable codes that do not depend on a decoder's words.
Decodes nothing.
"""

from __future__ import annotations

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

# Naming the plugins registers just these, so that Pillow never goes looking for other openers.
# MPO is opened by the JPEG plugin.
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)


def _accepted_formats() -> tuple[str, ...]:
    names = [plugin.format for plugin in _PLUGINS]
    try:
        from PIL import AvifImagePlugin  # Pillow 11.3 and later
    except ImportError:
        pass
    else:
        if features.check("avif"):
            names.append(AvifImagePlugin.AvifImageFile.format)
    return tuple(name for name in names if name in Image.OPEN)


# Pillow's names of the accepted formats; AVIF only where Pillow was built with it.
FORMATS: tuple[str, ...] = _accepted_formats()

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
# Bytes at a file's end in which an end marker is looked for: cameras append padding.
_TAIL_BYTES = 4096


def sniff_format(data: bytes | memoryview) -> str | None:
    """Pillow's name of the accepted format that the bytes claim, or None."""
    head = bytes(data[:256])
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and "AVIF" in FORMATS:
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[at : at + 4] for at in (8, *range(16, size, 4))}
        return "AVIF" if brands & _AVIF_BRANDS else None
    return None


def claimed_avif_pixels(data: bytes | memoryview) -> int:
    """Width times height of the largest picture an AVIF header describes; 0 where it has none.

    For pictures that the decoder refuses for their size before it can be asked.
    """
    head = bytes(data[:_TAIL_BYTES])
    largest = 0
    at = head.find(b"ispe")
    while at >= 0:
        width = int.from_bytes(head[at + 8 : at + 12], "big")
        height = int.from_bytes(head[at + 12 : at + 16], "big")
        largest = max(largest, width * height)
        at = head.find(b"ispe", at + 4)
    return largest


def is_cut_short(data: bytes | memoryview, format_name: str) -> bool:
    """Whether a file that did not decode ends before its format says it does."""
    tail = bytes(data[-_TAIL_BYTES:])
    if format_name == "JPEG":
        return b"\xff\xd9" not in tail
    if format_name == "PNG":
        return b"IEND" not in tail
    if format_name == "GIF":
        return not tail.rstrip(b"\x00").endswith(b";")
    if format_name == "WEBP":
        return int.from_bytes(bytes(data[4:8]), "little") + 8 > len(data)
    if format_name == "BMP":
        return int.from_bytes(bytes(data[2:6]), "little") > len(data)
    return False
