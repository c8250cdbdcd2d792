"""Small files that are costly to decode, made here: each kind of work that a structure can ask for, many times over."""

import io
import struct
import zlib

from PIL import Image


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_segments(data):
    """(marker, bytes of the whole segment with its entropy-coded data), without start and end of the image."""
    at, segments = 2, []
    while data[at + 1] != 0xD9:
        start, marker = at, data[at + 1]
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xDA:
            while not (data[at] == 0xFF and data[at + 1] not in (0, *range(0xD0, 0xD8))):
                at += 1
        segments.append((marker, data[start:at]))
    return segments


def scan_bomb(side, scans):
    """A progressive JPEG whose last scan comes again and again."""
    data = encode(Image.new("L", (side, side), 99), "JPEG", progressive=True, quality=50)
    segments = jpeg_segments(data)
    last = [body for marker, body in segments if marker == 0xDA][-1]
    return b"\xff\xd8" + b"".join(body for _, body in segments) + scans * last + b"\xff\xd9"


def jpeg_with(*segments):
    data = encode(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks):
    data = encode(Image.new("L", (8, 8)), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def directory(tags, payload):
    """A TIFF of one directory behind ``payload``, which begins at byte 8; tags are (number, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8 + len(payload)) + payload + struct.pack("<H", len(tags)) + body + bytes(4)


def tiff(extra=(), payload=bytes(4096), compression=1):
    """An 8 x 8 grey picture with more tags."""
    tags = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, compression), 262: (3, 1, 1), 273: (4, 1, 8)}
    tags |= {277: (3, 1, 1), 278: (3, 1, 8), 279: (4, 1, 64)} | {number: rest for number, *rest in extra}
    return directory([(number, *rest) for number, rest in tags.items()], payload)


def gif_with(blocks):
    data = encode(Image.new("L", (8, 8)), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)  # behind the palette
    return data[:at] + blocks + data[at:]


OVERLAPPING = [(20_000 + i, 1, 1 << 20, 8) for i in range(40)]

REFUSED = {
    "scans of a JPEG": (scan_bomb(256, 31_000), "samples in all scans"),
    "scans of a JPEG that is not progressive": (
        b"\xff\xd8"
        + b"".join(
            body if marker != 0xDA else 40_000 * b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
            for marker, body in jpeg_segments(encode(Image.new("RGB", (256, 256)), "JPEG"))
        ),
        "(samples in all scans|segments)",
    ),
    "segments of a JPEG": (jpeg_with(3_000 * jpeg_segment(0xFE, b"")), "segments"),
    "fill bytes of a JPEG": (jpeg_with(100_000 * b"\xff"), "bytes between segments"),
    "junk in a JPEG": (jpeg_with(jpeg_segment(0xFE, b""), 100_000 * b"a"), "bytes between segments"),
    "junk to the end of a JPEG": (b"\xff\xd8\xff\xe0\0\x02" + 100_000 * b"\xff\0", "bytes between segments"),
    "EXIF segments of a JPEG": (jpeg_with(20 * jpeg_segment(0xE1, b"Exif\0\0II*\0")), "EXIF segments"),
    "quantization tables of a JPEG": (jpeg_with(9 * jpeg_segment(0xDB, 130 * bytes(65))), "quantization tables"),
    "Photoshop segments of a JPEG": (jpeg_with(200 * jpeg_segment(0xED, b"Photoshop 3.0\0")), "Photoshop segments"),
    "EXIF tags of a JPEG": (
        jpeg_with(
            jpeg_segment(0xE1, b"Exif\0\0" + directory([(2_000 + i, 1, 30_000, 8) for i in range(99)], bytes(30_000)))
        ),
        "EXIF tags",
    ),
    "EXIF tags of a PNG": (png_with(png_chunk(b"eXIf", directory(OVERLAPPING, bytes(1 << 20)))), "EXIF tags"),
    "EXIF tags in text of a PNG": (
        png_with(
            png_chunk(
                b"zTXt",
                b"Raw profile type exif\0\0"
                + zlib.compress(
                    b"\nexif\n9\n"
                    + directory([(*tag[:2], 1 << 18, 8) for tag in OVERLAPPING], bytes(1 << 18)).hex().encode()
                ),
            )
        ),
        "EXIF tags",
    ),
    "orientations of a PNG": (
        png_with(png_chunk(b"eXIf", directory([(274, 3, 1 << 20, 8)], bytes(1 << 21)))),
        "EXIF tags",
    ),
}
"""Name to the file, and to what the reason names."""

UNUSUAL = {
    "chunks of a PNG": png_with(11_000 * png_chunk(b"abCd", b"")),
    "empty data of a PNG": png_with(11_000 * png_chunk(b"IDAT", b"")),
    "profiles of a PNG": png_with(17 * png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)))),
    "texts of a PNG": png_with(60 * png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))),
    "chunks of a WebP": encode(Image.new("L", (8, 8)), "WEBP") + 11_000 * b"abcd\0\0\0\0",
    "comment of a GIF": gif_with(b"!\xfe" + 5_000 * b"\x01a" + b"\0"),
    "comments of a GIF": gif_with(5_000 * b"!\xfe\x01a\0"),
    "extensions of a GIF": gif_with(b"!\xf9" + 70_000 * b"\x01a" + b"\0"),
    "empty extensions of a GIF": gif_with(70_000 * b"!\xf9\0"),
    "junk in a GIF": gif_with(70_000 * b"a"),
    "tags of a TIFF": tiff(OVERLAPPING, bytes(1 << 20)),
    "strips of a TIFF": tiff([(273, 4, 1 << 19, 8), (279, 4, 1 << 19, 8)], bytes(1 << 21)),
    "bytes in strips of a TIFF": tiff(
        [(273, 4, 1 << 12, 8), (279, 4, 1 << 12, 8)], struct.pack("<I", 1 << 20) * (1 << 12), compression=8
    ),
    "header of a PPM": b"P6 #" + 5_000 * b"a" + b"\n1 1 255 abc",
    "comments of a PPM": b"P6\n" + 2_500 * b"#\n" + b"1 1 255\nabc",
}
"""Name to a file whose structure pictures do not have: such files are decoded where time and memory are limited."""
