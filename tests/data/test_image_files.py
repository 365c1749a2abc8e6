from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vosforge.data.image_files import (
    decode_frame,
    decode_mask,
    encode_frame,
    encode_mask,
    is_turned,
    object_statistics,
    read_mask,
)
from vosforge.errors import UserError


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, format="PNG")
    return stream.getvalue()


def smooth(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


def test_mask_keeps_every_index_through_the_palette():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (decode_mask(encode_mask(mask), "m.png") == mask).all()


def test_palette_order_does_not_matter_only_the_index():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="L")
    image.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 0])
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    assert decode_mask(stream.getvalue(), "m.png").tolist() == [[0, 1], [2, 1]]


def test_black_and_white_mask_is_one_object():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5] = 255
    for data in (png(mask), png(mask, "RGB"), png(mask, "1"), png(mask, "LA"), png(mask, "RGBA")):
        assert (decode_mask(data, "m.png") == (mask > 0)).all()


def test_empty_mask_has_no_object():
    assert not decode_mask(png(np.zeros((8, 8), np.uint8)), "m.png").any()


def test_grey_mask_of_ids_keeps_them():
    mask = np.array([[0, 1, 2], [7, 2, 0]], np.uint8)
    assert (decode_mask(png(mask), "m.png") == mask).all()
    assert (decode_mask(png(mask, "RGB"), "m.png") == mask).all()


def test_colour_coded_mask_is_refused_by_name():
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[2:4] = [128, 0, 0]
    with pytest.raises(UserError, match=r"bear/00003\.png: .*RGB"):
        decode_mask(png(mask), "bear/00003.png")


def test_anti_aliased_mask_is_refused_by_name():
    soft = cv2.circle(np.zeros((200, 200), np.uint8), (100, 100), 60, 255, -1)
    soft = cv2.GaussianBlur(soft, (0, 0), 4)
    with pytest.raises(UserError, match=r"bear/00003\.png: .*grey levels.*anti-aliased"):
        decode_mask(png(soft), "bear/00003.png")


def test_16_bit_mask_is_refused_by_name():
    with pytest.raises(UserError, match=r"bear/00003\.png: .*8-bit.*uint16"):
        decode_mask(png(np.full((8, 8), 300, np.uint16)), "bear/00003.png")


@pytest.mark.parametrize("data", [b"", b"no picture at all", encode_mask(np.eye(32, dtype=np.uint8))[:200]])
def test_bytes_that_are_no_mask_are_refused_by_name(data):
    with pytest.raises(UserError, match=r"00003\.png: expected a mask PNG"):
        decode_mask(data, "00003.png")


def test_mask_with_any_byte_damaged_decodes_or_is_refused_as_input():
    mask = np.zeros((24, 24), np.uint8)
    mask[4:18, 6:20] = 3
    data, refused = encode_mask(mask), 0
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 0x55
        try:
            decode_mask(bytes(damaged), "m.png")
        except UserError:
            refused += 1
    assert refused > len(data) // 2


def test_frame_survives_jpeg():
    frame = smooth()
    assert np.abs(decode_frame(encode_frame(frame), "f.jpg").astype(int) - frame).mean() < 3


def test_frame_channels_are_rgb():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert (decode_frame(encode_frame(red), "f.jpg").mean(axis=(0, 1)).round() == [254, 0, 0]).all()
    assert (decode_frame(png(red), "f.png") == red).all()


def test_16_bit_frame_becomes_8_bit():
    frame = np.full((8, 8, 3), 128 * 256, np.uint16)
    decoded = decode_frame(cv2.imencode(".png", frame)[1].tobytes(), "f.png")
    assert decoded.dtype == np.uint8
    assert (decoded == 128).all()


@pytest.mark.parametrize("keep", [0, 10, 300, -20])
def test_truncated_frame_is_refused_by_name(keep):
    with pytest.raises(UserError, match=r"bear/00003\.jpg: expected a JPEG or PNG"):
        decode_frame(encode_frame(smooth())[:keep], "bear/00003.jpg")


def test_statistics_give_ids_areas_and_boxes_with_the_end_excluded():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 10:14] = 200
    mask[10:20, 0:3] = 7
    assert object_statistics(mask) == ([7, 200], [30, 12], [0, 10, 3, 20, 10, 2, 14, 5])


def test_grey_mask_with_a_few_levels_between_0_and_255_is_anti_aliased():
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12], mask[4, 4:12] = 255, 131
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="PNG")
    with pytest.raises(UserError, match=r"soft\.png: expected object ids, found 3 grey levels"):
        decode_mask(stream.getvalue(), "soft.png")


def sized_png(width: int, height: int) -> bytes:
    """A PNG whose header says so."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = bytearray(png(np.zeros((4, 4), np.uint8)))
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return bytes(data)


@pytest.mark.parametrize("read", [read_mask, decode_mask, decode_frame])
def test_pictures_of_too_many_pixels_are_refused_by_name(read):
    with pytest.raises(UserError, match=r"bear/00003\.png: "):
        read(sized_png(60000, 60000), "bear/00003.png")


def oriented(orientation: int | None) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    exif[0x010F] = "maker"
    Image.fromarray(smooth()).save(stream, format="JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(("orientation", "turned"), [(None, False), (1, False), (2, True), (6, True), (9, False)])
def test_jpeg_is_turned_only_by_an_orientation_that_turns(orientation, turned):
    data = oriented(orientation)
    assert is_turned(data) == turned
    assert decode_frame(data, "f.jpg").shape == ((64, 48, 3) if orientation == 6 else (48, 64, 3))
    assert not is_turned(encode_frame(smooth()))
