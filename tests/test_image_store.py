"""What the image store keeps, writes, forgets and refuses."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.errors import ImageError, StorageError
from saccade.geometry import Affine, Box
from saccade.image_store import ImageStore
from saccade.images import OPERATIONS, ImageView, Operation, beside, root_view
from saccade.types import Derivation, ImagePart, ImageRef


def picture(width: int = 40, height: int = 30, *, seed: int = 0) -> Image.Image:
    """Noise: no two places look alike."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def is_one_sentence(error: pytest.ExceptionInfo[BaseException]) -> bool:
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and " object at " not in text


def made(recipe: list[Callable[[ImageView], ImageView]], *, seed: int = 0) -> ImageView:
    view = root_view(picture(seed=seed))
    for step in recipe:
        view = step(view)
    return view


def test_roots_are_written_once_and_everything_comes_back_from_the_folder(tmp_path: Path) -> None:
    store = ImageStore()
    views = [
        made([lambda v, i=i: v.crop(Box(i, i, 20, 20)).rotate(i)], seed=i % 2) for i in range(4)
    ]
    both = beside(views[0], views[1])
    refs = [store.add(v) for v in (*views, both)]
    store.save(refs, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    assert {f.stem for f in files} == {root_view(picture(seed=i)).ref.key for i in (0, 1)}
    times = [f.stat().st_mtime_ns for f in files]
    store.save(refs, tmp_path)
    assert [f.stat().st_mtime_ns for f in files] == times
    other = ImageStore(tmp_path)
    for ref, view in zip(refs, (*views, both), strict=True):
        assert same(other.view(ref).pixels, view.pixels)


def test_a_small_cache_forgets_pixels_and_loses_no_image(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, cache_bytes=5000)
    roots = [root_view(picture(seed=i)) for i in range(6)]
    crops = [root.crop(Box(2, 2, 30, 30)) for root in roots]
    refs = [store.add(crop) for crop in crops]
    assert store._cached_bytes <= 5000
    store.save(refs[:3], tmp_path)
    assert len(store._kept) == 3
    for _ in range(2):
        for ref, crop in zip(refs, crops, strict=True):
            assert same(store.view(ref).pixels, crop.pixels)
            assert store._cached_bytes <= 5000
            assert store._cached_bytes == sum(3 * i.width * i.height for i in store._cache.values())


def test_pixels_at_hand_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    view = root_view(picture()).resize(300, 200)
    pixels = view.pixels
    monkeypatch.setitem(OPERATIONS, "resize", Operation(1, lambda parents, arguments: 1 / 0))
    store = ImageStore()
    assert store.view(store.add(view)).pixels is pixels


def test_an_image_of_one_store_can_be_added_to_another() -> None:
    first, second = ImageStore(), ImageStore()
    view = first.view(first.add(made([lambda v: v.rotate(20)])))
    ref = second.add(view.crop(Box(0, 0, 9, 9)))
    assert same(second.view(ref).pixels, first.view(view.ref).crop(Box(0, 0, 9, 9)).pixels)


def test_an_image_that_is_nowhere_is_one_sentence(tmp_path: Path) -> None:
    ref = made([lambda v: v.rotate(20)]).ref
    for store in (ImageStore(), ImageStore(tmp_path)):
        with pytest.raises(ImageError, match="is not in this store") as error:
            store.view(ref)
        assert is_one_sentence(error)


def test_a_key_that_is_no_hash_never_becomes_a_path(tmp_path: Path) -> None:
    (tmp_path / "run" / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(encoded(picture(8, 8), "PNG"))
    ref = ImageRef("../../secret", 8, 8)
    with pytest.raises(ImageError, match="is no key of an image"):
        ImageStore(tmp_path / "run").view(ref)


def test_a_file_that_is_broken_or_holds_other_pixels_is_refused(tmp_path: Path) -> None:
    view = root_view(picture())
    store = ImageStore()
    store.save([store.add(view)], tmp_path)
    path = tmp_path / "images" / f"{view.ref.key}.png"
    whole = path.read_bytes()
    for data in (whole[:200], b"", encoded(picture(seed=5), "PNG"), encoded(picture(9, 9), "PNG")):
        path.write_bytes(data)
        with pytest.raises(ImageError) as error:
            _ = ImageStore(tmp_path).view(view.ref).pixels
        assert is_one_sentence(error)
    path.write_bytes(whole)
    assert same(ImageStore(tmp_path).view(view.ref).pixels, view.pixels)


def test_a_large_or_long_root_of_ours_is_read_again_whatever_the_limits(tmp_path: Path) -> None:
    store = ImageStore()
    ref = store.add(root_view(Image.new("RGB", (3, 900), "red")))
    store.save([ref], tmp_path)
    assert ImageStore(tmp_path).view(ref).pixels.size == (3, 900)


def test_a_folder_that_cannot_be_written_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore()
    ref = store.add(root_view(picture()))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Can't write image") as error:
        store.save([ref], tmp_path / "file")
    assert is_one_sentence(error)

    def full(self: Image.Image, file: Any, format: str) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match="No space left on device"):
        store.save([ref], tmp_path)
    assert list((tmp_path / "images").iterdir()) == []
    monkeypatch.undo()
    store.save([ref], tmp_path)
    assert same(ImageStore(tmp_path).view(ref).pixels, picture())


def test_a_recipe_that_was_changed_or_is_of_another_version_is_refused() -> None:
    view = root_view(picture()).crop(Box(0, 0, 9, 9))
    store = ImageStore()
    store.add(view)
    part = ImagePart(view.parents[0].ref, Box(0, 0, 9, 9), Affine())
    for operation, version, width, pattern in (
        ("crop", 2, 9, "made by 'crop' version 2"),
        ("eval", 1, 9, "made by 'eval' version 1"),
        ("crop", 1, 8, "should be 8 x 9 but its recipe gives 9 x 9"),
        ("crop", 1, 9, "is not what its recipe makes"),
    ):
        assert view.ref.derivation is not None
        derivation = Derivation(operation, view.ref.derivation.arguments, version)
        ref = ImageRef("0" * 64, width, 9, (part,), derivation)
        with pytest.raises(ImageError, match=pattern) as error:
            _ = store.view(ref).pixels
        assert is_one_sentence(error)


def test_many_threads_share_one_store(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, cache_bytes=20_000)
    failures: list[BaseException] = []
    wanted = {i: root_view(picture(seed=i)).resize(30, 30).pixels.tobytes() for i in range(8)}
    start = threading.Barrier(8)

    def work(offset: int) -> None:
        try:
            start.wait()
            for turn in range(16):
                seed = (turn + offset) % 8
                ref = store.add(root_view(picture(seed=seed)).resize(30, 30))
                assert store.view(ref).pixels.tobytes() == wanted[seed]
                if turn % 4 == 0:
                    store.save([ref], tmp_path)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((tmp_path / "images").iterdir())) == 8


def test_the_view_of_what_was_compared_with_itself_holds_each_image_once() -> None:
    view = root_view(picture())
    for _ in range(6):
        view = beside(view.crop(Box(0, 0, 12, 9)), view.crop(Box(6, 0, view.width, 9)))
    store = ImageStore()
    seen = store.view(store.add(view))
    assert same(seen.pixels, view.pixels)
    for _ in range(6):
        left, right = seen.parents
        assert left.parents[0] is right.parents[0]
        seen = left.parents[0]
    assert seen.ref.is_root
