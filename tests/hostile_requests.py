"""What strangers may send to a service of tools, and what must come of it."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from saccade.images import ImageView, root_view

TOKEN = "a secret of the tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def noise(seed: int = 0, width: int = 60, height: int = 40) -> ImageView:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


def png(view: ImageView) -> bytes:
    file = io.BytesIO()
    view.pixels.save(file, "PNG")
    return file.getvalue()


def send(url: str, data: bytes) -> str:
    return httpx.post(f"{url}/pictures", content=data, headers=AUTH).json()["image"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(min(width * height * 3, 10**7)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD = png(noise(7))
PICTURES: dict[str, bytes] = {
    "empty": b"",
    "text": b"not a picture",
    "path": b"/etc/passwd",
    "url": b"http://127.0.0.1/x.png",
    "html": b"<html><img src=x></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='1e9' height='1e9'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": b"%PDF-1.7\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(10_000),
    "signature alone": GOOD[:8],
    "bomb 100,000 x 100,000": bomb(100_000, 100_000),
    "bomb 20,000 x 20,000": bomb(20_000, 20_000),
    "bomb 9,000 x 9,000": bomb(9_000, 9_000),
    "no width": bomb(0, 100),
    "no height": bomb(100, 0),
    "line": bomb(100_000, 1),
    "column": bomb(1, 100_000),
    "too long": b"\x89PNG\r\n\x1a\n" + bytes(17 * 2**20),
    "negative": bomb(2**31 - 1, 2**31 - 1),
    **{f"cut at {share}%": GOOD[: len(GOOD) * share // 100] for share in range(5, 100, 5)},
    **{
        f"flipped {at}": GOOD[:at] + bytes([GOOD[at] ^ 0xFF]) + GOOD[at + 1 :]
        for at in range(8, 60, 2)
    },
}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    2**80,
    "",
    "x" * 100_000,
    "\ud800",
    [],
    [[]],
    {},
    {"a": {"b": {}}},
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [9, 9, 3, 3],
    [0, 0, 0, 0],
    [5, 5, 5, 9],
    [-9, -9, -3, -3],
    [1e300, 1e300, 1e301, 1e301],
    [0.1, 0.1, 0.2, 0.2],
    ["0", "0", "9", "9"],
    [None] * 4,
    [True, True, False, False],
    [[0, 0, 9, 9]],
    list(range(5_000)),
]
RAW_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"image": ',
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "deep argument": b'{"image": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "list": b"[1, 2]",
    "number": b"7",
    "text": b'"x"',
    "NaN": b'{"image": "IMG", "box": [NaN, 0, 9, 9]}',
    "Infinity": b'{"image": "IMG", "box": [0, 0, Infinity, 9]}',
    "huge number": b'{"image": "IMG", "box": [' + b"9" * 5_000 + b", 0, 9, 9]}",
    "long string": b'{"image": "' + b"x" * 500_000 + b'"}',
    "10 MB string": b'{"image": "' + b"x" * 10_000_000 + b'"}',
    "no UTF-8": b'{"image": "\xff\xfe"}',
    "surrogate": b'{"image": "\\ud800"}',
    "twice": b'{"image": "IMG", "image": "IMG", "box": [0, 0, 9, 9], "box": 3}',
    "many keys": b"{" + b",".join(b'"k%d": 1' % n for n in range(50_000)) + b"}",
    "unknown key": b'{"image": "IMG", "box": [0, 0, 9, 9], "shell": "rm -rf /"}',
    "path": b'{"image": "/etc/passwd", "box": [0, 0, 9, 9]}',
    "file": b'{"image": "file:///etc/passwd", "box": [0, 0, 9, 9]}',
    "url": b'{"image": "http://169.254.169.254/", "box": [0, 0, 9, 9]}',
    "up": b'{"image": "../../../etc/passwd", "box": [0, 0, 9, 9]}',
    "code": b'{"image": "__import__(\'os\')", "box": [0, 0, 9, 9]}',
}
NAMES = ["nothing", "terminate", "__class__", "crop%00", "..%2f..%2fetc", "x" * 3000, "Crop "]
HOSTILE: list[tuple[str, str, bytes]] = [
    *((f"picture: {name}", "pictures", data) for name, data in PICTURES.items()),
    *((f"body: {name}", "tools/crop", data) for name, data in RAW_BODIES.items()),
    *((f"tool: {name[:20]!r}", f"tools/{name}", b"{}") for name in NAMES),
    *(
        (
            f"{parameter} of {tool}: {json.dumps(value)[:30]}",
            f"tools/{tool}",
            json.dumps({"image": "IMG", "box": [0, 0, 9, 9], parameter: value}).encode(),
        )
        for tool, parameter in (
            ("crop", "image"),
            ("crop", "box"),
            ("rotate", "degrees"),
            ("draw_horizontal_line", "y"),
            ("measure", "start"),
        )
        for value in ODD
    ),
]


class Peak:
    """The most memory that a process has, looked at all the time."""

    def __init__(self, pid: int) -> None:
        self._statm = Path(f"/proc/{pid}/statm")
        self.mb = self.now()

    def now(self) -> float:
        return int(self._statm.read_text().split()[1]) * 4096 / 2**20

    @contextmanager
    def watched(self) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.002):
                self.mb = max(self.mb, self.now())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def answer_all(url: str, pid: int) -> None:
    """One sentence for each hostile request, in bounded time, and memory of `pid`, the server; a
    good call is served before and afterwards.
    """
    assert len(HOSTILE) >= 200
    with httpx.Client(headers=AUTH, timeout=20) as client:

        def cropped() -> str:
            name: str = client.post(f"{url}/pictures", content=GOOD).json()["image"]
            body = {"image": name, "box": [0, 0, 9, 9]}
            good = client.post(f"{url}/tools/crop", json=body)
            assert not good.json()["failed"]
            return name

        name = cropped()
        for what, path, body in HOSTILE:
            peak, began = Peak(pid), time.perf_counter()
            before = peak.mb
            data = body.replace(b"IMG", name.encode()) if len(body) < 100_000 else body
            with peak.watched():
                answer = client.post(f"{url}/{path}", content=data)
            assert time.perf_counter() - began < 1.0, what
            assert peak.mb - before < 200, what
            assert answer.status_code in (200, 400, 404, 405, 409, 413, 422), (what, answer.text)
            if answer.status_code == 200 and path != "pictures":
                said = answer.json()
                assert not said["failed"] or len(said["parts"][0]["text"]) < 2_000, what
            elif answer.status_code not in (200, 404, 405):
                assert 10 < len(answer.json()["error"]) < 2_000, what
        cropped()
