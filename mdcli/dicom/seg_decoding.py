"""Decode the frames of a compressed SEG in worker processes, so that a codec that aborts ends one case, not the program.

Source: DICOM PS3.5 A.4 and 8.2. A frame of single bits is packed into bytes, or has a byte for each pixel (annex G.2 for RLE, and
what a codestream of one bit gives): how many bytes come out tells which.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codecs import SYNTAXES
from mdcli.errors import DataError, MdError

if TYPE_CHECKING:
    from mdcli.dicom.fragments import Span
    from mdcli.dicom.seg_in import Seg

MOST_PER_COMPRESSED_BYTE = 4000
"""Compressed frames may claim this many bytes for each byte of the file: an empty plane is a hundred bytes of JPEG 2000 ..."""
ALWAYS_ALLOWED_BYTES = 256 << 20
"""... or this many in all."""
WORKER_BYTES = 512 << 20
"""Address space that a worker may take beyond what it starts with ..."""
WORKER_BYTES_PER_PIXEL = 24
"""... and for each pixel of a frame: OpenJPEG holds a sample in 4 bytes, several times."""
_FORK = sys.platform == "linux"


def decode_frames(path: Path, seg: Seg, jobs: int) -> bytearray:
    """Return all frames as native ones: without a gap, the first pixel of single bits in the lowest bit, little endian.

    Args:
        path: of the file.
        seg: as `mdcli.dicom.seg_in.read_seg_header` gave it; its pixels are encapsulated.
        jobs: worker processes.

    Raises:
        DataError: `too-many-pixels` where the frames would take more than a file of this size can hold; `decoder-crashed` where a
            worker died; `decoder-memory`; `lossy-seg`; `seg-broken` for values that the type can't have; those of
            `mdcli.dicom.fragments.locate_frames` and `mdcli.dicom.codecs.decode_frame`.
    """
    from mdcli.dicom.fragments import locate_frames
    from mdcli.dicom.seg_in import open_seg

    count, bits = len(seg.frames), seg.rows * seg.columns * seg.bits_allocated
    total = -(-count * bits // 8)
    if total > max(ALWAYS_ALLOWED_BYTES, MOST_PER_COMPRESSED_BYTE * seg.size):
        text = f"{seg.name} of {seg.size} bytes would have {total} bytes of pixels"
        raise DataError("too-many-pixels", text, bytes=total)
    form = SYNTAXES[seg.syntax].form if seg.syntax in SYNTAXES else "deflated-frame"
    with open_seg(path) as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        # A deflated frame is one fragment, as one of RLE is: PS3.5 A.4.13.
        layout = "rle" if form == "deflated-frame" else form
        try:
            spans = locate_frames(read, seg.pixel_offset, seg.size, count, layout, seg.extended)
        except DataError as error:
            raise DataError(error.code, f"{seg.name}: {error.message}", hint=error.hint, **error.numbers) from error
    decoded = bytearray(total)
    workers = max(1, min(jobs, count))
    started = [_start(path, seg, form, spans[n::workers], n, workers) for n in range(workers)]
    try:
        for n in range(count):
            _put(decoded, n * bits, _receive(*started[n % workers], seg, n, form), bits)
    except BaseException:
        for process, _ in started:
            process.kill()
        raise
    finally:
        for process, line in started:
            line.close()
            process.join()
            process.close()
    return decoded


def _put(decoded: bytearray, first: int, data: bytes, bits: int) -> None:
    """Put the bytes of one frame where its first bit belongs."""
    if first % 8 == 0 and bits % 8 == 0:
        decoded[first // 8 : first // 8 + len(data)] = data
        return
    frame = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:bits]
    shifted = np.packbits(np.concatenate([np.zeros(first % 8, np.uint8), frame]), bitorder="little")
    shifted[0] |= decoded[first // 8]
    decoded[first // 8 : first // 8 + len(shifted)] = shifted.tobytes()


def _start(
    path: Path, seg: Seg, form: str, spans: Sequence[Sequence[Span]], first: int, step: int
) -> tuple[BaseProcess, Connection[Any, Any]]:
    context = multiprocessing.get_context("fork" if _FORK else "spawn")
    ours, theirs = context.Pipe()
    task = (theirs, ours if _FORK else None, path, seg, form, spans, first, step)
    process = context.Process(target=_serve, args=task, daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return process, ours


def _receive(process: BaseProcess, line: Connection[Any, Any], seg: Seg, n: int, form: str) -> bytes:
    try:
        answer = json.loads(line.recv_bytes())
        if "error" not in answer:
            return line.recv_bytes()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        raise DataError("decoder-crashed", f"frame {n + 1} of {seg.name} killed its {form} decoder ({how})") from None
    raise DataError(answer["error"], f"frame {n + 1} of {seg.name}: {answer['message']}", hint=answer["hint"])


def _serve(
    line: Connection[Any, Any],
    other: Connection[Any, Any] | None,
    path: Path,
    seg: Seg,
    form: str,
    spans: Sequence[Sequence[Span]],
    first: int,
    step: int,
) -> None:
    if other is not None:
        other.close()
    # Ctrl-C reaches the whole group; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(WORKER_BYTES + WORKER_BYTES_PER_PIXEL * seg.rows * seg.columns)
    with path.open("rb") as file:
        for fragments in spans:
            parts = []
            for offset, length in fragments:
                file.seek(offset)
                parts.append(file.read(length))
            try:
                data = _decoded(form, b"".join(parts), seg)
            except MdError as error:
                _answer(line, error.code, error.message, error.hint)
                return
            except MemoryError:
                _answer(line, "decoder-memory", "it needs more memory than a decoder may have", None)
                return
            try:
                line.send_bytes(b"{}")
                line.send_bytes(data)
            except OSError:
                return


def _answer(line: Connection[Any, Any], code: str, message: str, hint: str | None) -> None:
    try:
        line.send_bytes(json.dumps({"error": code, "message": message, "hint": hint}).encode())
    except OSError:
        return


def _decoded(form: str, stream: bytes, seg: Seg) -> bytes:
    """Return one frame as native bytes that start with its first pixel in the lowest bit."""
    pixels = seg.rows * seg.columns
    if form == "deflated-frame":
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            plain = inflater.decompress(stream, max(seg.frame_bytes, pixels) + 1)
        except zlib.error as error:
            raise DataError("undecodable", f"it can't be inflated: {error}") from error
        return _settled(np.frombuffer(plain, np.uint8), seg)
    from mdcli.dicom.codecs import decode_frame

    if seg.bits_allocated == 1 and form == "rle":
        try:
            samples = decode_frame(form, stream, seg.rows, seg.columns, 1, 8).samples
        except DataError:
            samples = decode_frame(form, stream, 1, seg.frame_bytes, 1, 8).samples
        return _settled(samples.ravel().view(np.uint8), seg)
    found = decode_frame(form, stream, seg.rows, seg.columns, 1, max(8, seg.bits_allocated))
    if found.lossy:
        hint = "labels that were compressed with loss are not the labels that were drawn"
        raise DataError("lossy-seg", f"it is compressed with loss ({found.lossy})", hint=hint)
    samples = found.samples
    if samples.min() < 0 or int(samples.max()) >= 1 << seg.bits_allocated:
        text = f"its codestream holds {samples.min()} to {samples.max()} in {seg.bits_allocated} bit(s)"
        raise DataError("codestream-mismatch", text)
    if seg.bits_allocated == 1:
        return _settled(samples.ravel().astype(np.uint8), seg)
    return bytes(samples.astype(f"<u{seg.bits_allocated // 8}").tobytes())


def _settled(plain: NDArray[np.uint8], seg: Seg) -> bytes:
    """Return the bytes of a frame whose single bits may have a byte each."""
    pixels = seg.rows * seg.columns
    if seg.bits_allocated == 1 and len(plain) in (pixels, pixels + pixels % 2) and len(plain) != seg.frame_bytes:
        if plain[:pixels].max() > 1:
            raise DataError("seg-broken", f"its pixels of one bit have the value {plain[:pixels].max()}")
        return np.packbits(plain[:pixels], bitorder="little").tobytes()
    if not seg.frame_bytes <= len(plain) <= seg.frame_bytes + 1:
        raise DataError("seg-broken", f"it decodes to {len(plain)} bytes, not {seg.frame_bytes}")
    return plain[: seg.frame_bytes].tobytes()


def _limit_memory(more: int) -> None:
    """Allow this process so many bytes of address space beyond what it has."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now, most = pages * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = now + more if most == resource.RLIM_INFINITY else min(now + more, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, OSError, ValueError):
        return
