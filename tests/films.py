"""Films that say how they are to be shown, made by PyAV: their bytes.

data = films.film([films.corner()] * 3, "mp4", "libx264", "yuv420p")
"""

import io
import struct
import tempfile
from fractions import Fraction

import av
import av.filter
import numpy as np

WIDTH, HEIGHT = 32, 16
RED = (200, 30, 60)


def flat(colour, size=(WIDTH, HEIGHT)):
    return np.broadcast_to(np.uint8(colour), (size[1], size[0], len(colour))).copy()


def corner(alpha=None):
    """Gray, with red in its upper left quarter."""
    made = flat((90, 90, 90))
    made[: HEIGHT // 2, : WIDTH // 2] = RED
    return made


def film(pictures, container="matroska", codec="ffv1", pixels="bgr0", *, times=None, **how):
    """The bytes of a film of `pictures` (RGB or RGBA arrays, or frames), five a second.

    how: options, of the encoder; context, attributes of it; metadata, of the stream; matrix,
    (degrees, hflip, vflip).
    """
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", container) as out:
        stream = out.add_stream(codec, rate=5, options=how.get("options", {}))
        stream.metadata.update(how.get("metadata", {}))
        first = pictures[0]
        shape = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape
        stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], pixels
        for name, value in how.get("context", {}).items():
            setattr(stream.codec_context, name, value)
        if "matrix" in how:
            degrees, hflip, vflip = how["matrix"]
            stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        for number, picture in enumerate(pictures):
            frame = picture
            if not isinstance(picture, av.VideoFrame):
                names = {3: "rgb24", 4: "rgba"}
                frame = av.VideoFrame.from_ndarray(picture, format=names[picture.shape[2]])
            if times:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        out.close()
        return file.read()


def woven(number, first, size=(96, 64)):
    """Gray, with a bar that moves from one field to the other, 8 columns each time."""
    width, height = size
    made = flat((40, 40, 40), size)
    for field in range(2):
        left = 4 + 8 * (2 * number + field)
        made[field if first == "tff" else 1 - field :: 2, left : left + 16] = 220
    return made


def of_fields(picture, first, pixels):
    """A frame that says that it is made of two fields, and which is first."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    graph = av.filter.Graph()
    source = graph.add_buffer(template=frame, time_base=Fraction(1, 5))
    graph.link_nodes(source, graph.add("setfield", first), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def tagged(signal, matrix, transfer, primaries, pixels="yuv444p10le"):
    """The bytes of a film of R'G'B' in 0..1, [H,W,3], whose container names its colours."""
    deep = np.rint(np.asarray(signal) * 65535).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(deep, format="rgb48le")
    frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=1)
    named = dict(colorspace=matrix, color_trc=transfer, color_primaries=primaries, color_range=1)
    for name, value in named.items():
        setattr(frame, name, value)
    return film([frame] * 2, pixels=pixels, context=named)


def matroska_of(elements):
    """A film of `corner` with more elements of its picture, in hexadecimal digits, in place of
    padding that FFmpeg leaves."""
    data = film([corner()] * 3, "matroska", "ffv1", "yuv444p")
    old = bytes.fromhex("e08ab08120ba811054b2810455ee8100ec01000000000000020000")
    said = bytes.fromhex("b08120ba8110" + elements)
    new = bytes([0xE0, 0x80 | len(said)]) + said
    left = len(old) - len(new) - 2
    assert data.count(old) == 1 and left >= 0
    return data.replace(old, new + bytes([0xEC, 0x80 | left]) + bytes(left))


def cropped_matroska(left, top, right, bottom):
    """A film of `corner` with Matroska's crop."""
    return matroska_of(f"54cc81{left:02x}54bb81{top:02x}54dd81{right:02x}54aa81{bottom:02x}")


def with_box(data, kind, *values):
    """The bytes of an MP4 film with one more box in its first track's entry."""
    box = struct.pack(f">I4s{len(values)}i", 8 + 4 * len(values), kind, *values)
    data, boxes = bytearray(data), (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    starts = [data.index(boxes[0]) - 4]
    for name in boxes[1:]:
        starts.append(data.index(name, starts[-1]) - 4)
    entry = starts[-1] + 16
    end = entry + int.from_bytes(data[entry : entry + 4])
    for at in (*starts, entry):
        data[at : at + 4] = (int.from_bytes(data[at : at + 4]) + len(box)).to_bytes(4)
    data[end:end] = box
    return bytes(data)


def cropped_mp4(
    left, top, right, bottom, kind=("mp4", "libx264", "yuv444p"), options=(("qp", "0"),), **how
):
    """A film of `corner` with a clean aperture: its size and how far its middle is from theirs."""
    data = film([corner()] * 3, *kind, options=dict(options), **how)
    size = [WIDTH - left - right, 1, HEIGHT - top - bottom, 1]
    return with_box(data, b"clap", *size, left - right, 2, top - bottom, 2)


def cropped_quicktime(*edges):
    """The same, of a codec that Matroska does not know."""
    return cropped_mp4(*edges, ("mov", "qtrle", "argb"), options=())


def copied(data, container):
    """The bytes of a film in another container, as FFmpeg copies it there."""
    with (
        av.open(io.BytesIO(data)) as film,
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", container) as out,
    ):
        stream = out.add_stream_from_template(film.streams.video[0], opaque=True)
        for packet in film.demux():
            if packet.size:
                packet.stream = stream
                out.mux(packet)
        out.close()
        return file.read()


def dolby(container, profile, others, tag="hvc1"):
    """A film with a record of Dolby Vision; others: the number of what other players see, 0 none.

    Dolby Vision Streams Within the ISO Base Media File Format, 3.2, and Within the MPEG-2 Transport
    Stream Format, 3.3.
    """
    data = film(
        *([flat((40, 40, 40), (64, 32))] * 2, "mp4", "libx265", "yuv420p10le"),
        options={"x265-params": "lossless=1:bframes=0:log-level=none"},
        context={"codec_tag": tag},
    )
    record = struct.pack(">BBHB", 1, 0, profile << 9 | 1 << 3 | 0b101, others << 4)
    if container == "mpegts":
        return _described(copied(data, container), b"\xb0\x05" + record)
    kind = b"dvcC" if profile < 8 else b"dvvC"
    data = with_box(data, kind, *struct.unpack(">6i", record.ljust(24, b"\0")))
    return data if container == "mp4" else copied(data, container)


def _described(data, descriptor):
    """An MPEG-TS film with one more descriptor at its stream: in each PMT (ISO/IEC 13818-1)."""
    packets = [bytearray(data[at : at + 188]) for at in range(0, len(data), 188)]
    for packet in packets:
        if int.from_bytes(packet[1:3]) & 0x5FFF != 0x5000:  # a unit begins; FFmpeg's PID of it
            continue
        section = packet[5 : 8 + (int.from_bytes(packet[6:8]) & 0xFFF) - 4]
        stream = 12 + (int.from_bytes(section[10:12]) & 0xFFF)
        for at, mask in ((1, 0xFFF), (stream + 3, 0xFFF)):
            size = int.from_bytes(section[at : at + 2])
            assert (size & mask) + len(descriptor) <= mask
            section[at : at + 2] = (size + len(descriptor)).to_bytes(2)
        section += descriptor
        section += _crc(section).to_bytes(4)
        packet[5:] = section.ljust(183, b"\xff")
    return b"".join(packets)


def _crc(data):
    """The CRC-32 of MPEG-2."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return crc
