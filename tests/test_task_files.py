import json
from pathlib import Path

import pytest
from PIL import Image

from saccade.errors import DataError, RecipeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.rewards.answers import lenient
from saccade.tasks import CLUSTER, Task, stream, task_named
from saccade.tasks.charts import Charts
from saccade.tasks.files import Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with two pictures, and a third outside of it."""
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (100, 80), "red").save(data / "red.png")
    Image.new("RGB", (60, 40), "blue").save(data / "blue.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "secret.png")
    return data


def plain(**changes: object) -> dict[str, object]:
    """A good row with changes; None takes a field out."""
    row = {"image": "red.png", "question": "What colour?", "answer": "red", **changes}
    return {k: v for k, v in row.items() if v is not None}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def complaint(folder: Path, *rows: object) -> str:
    with pytest.raises(DataError) as caught:
        Files(write(folder, *rows)).load("test", store=ImageStore())
    return str(caught.value)


def test_a_full_row_becomes_a_sample(folder):
    row = plain(
        image=None,
        images=["red.png", "blue.png"],
        id="q1",
        kind="colour",
        split="train",
        stratum="look",
        evidence=[
            {"box": [10, 20, 30.5, 40], "phrase": "the patch"},
            {"box": [0, 0, 60, 40], "image": 1},
        ],
    )
    store = ImageStore()
    (sample,) = Files(write(folder, row)).load("train", store=store)
    assert (sample.id, sample.question, sample.answer) == ("q1", "What colour?", "red")
    assert (sample.kind, sample.stratum) == ("colour", "look")
    assert [(i.width, i.height) for i in sample.images] == [(100, 80), (60, 40)]
    assert [(e.image, e.box, e.phrase) for e in sample.evidence] == [
        (sample.images[0], Box(10, 20, 30.5, 40), "the patch"),
        (sample.images[1], Box(0, 0, 60, 40), ""),
    ]
    assert store.view(sample.images[1]).pixels.getpixel((5, 5)) == (0, 0, 255)


def test_rows_come_in_order_from_start_and_as_many_as_asked_for(folder):
    path = write(folder, *(plain(id=f"q{n}", split="train" if n % 2 else None) for n in range(10)))
    task = Files(path)
    assert [s.id for s in task.load("train", store=ImageStore())] == ["q1", "q3", "q5", "q7", "q9"]
    some = task.load("test", store=ImageStore(), start=1, count=2)
    assert [s.id for s in some] == ["q2", "q4"]
    assert task.load("test", store=ImageStore(), start=99) == []


def test_blank_lines_and_a_byte_order_mark_are_no_rows_and_lines_keep_their_numbers(folder):
    path = folder / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(plain()).encode() + b"\r\n\n  \n")
    with path.open("ab") as file:
        file.write(json.dumps(plain(question="Was für 色? \u2028")).encode())
    samples = Files(path).load("test", store=ImageStore())
    assert [s.id for s in samples] == ["line-1", "line-4"]
    assert samples[1].question == "Was für 色? \u2028"


def test_a_split_without_rows_is_refused_with_those_that_exist(folder):
    path = write(folder, plain(), plain(split="dev"))
    with pytest.raises(DataError, match=r"no rows of split 'train'; there are: dev, test"):
        Files(path).load("train", store=ImageStore())


def test_boxes_are_in_the_upright_picture(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (100, 80)).save(folder / "turned.jpg", exif=exif)
    tall = plain(image="turned.jpg", evidence=[{"box": [0, 0, 40, 90]}])
    (sample,) = Files(write(folder, tall)).load("test", store=ImageStore())
    assert (sample.images[0].width, sample.images[0].height) == (80, 100)
    wide = plain(image="turned.jpg", evidence=[{"box": [0, 0, 90, 40]}])
    assert "outside the upright picture of 80 x 100 pixels" in complaint(folder, wide)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": "gone.png"}, "there is no picture 'gone.png'"),
        ({"image": "."}, "there is no picture '.'"),
        ({"image": "broken.png"}, "picture 'broken.png'"),
        ({"image": "../secret.png"}, "outside the folder"),
        ({"image": "sub/../../secret.png"}, "outside the folder"),
        ({"image": "link.png"}, "outside the folder"),
        ({"image": "a\0b"}, "can't be opened"),
        ({"image": "n" * 5000}, "can't be opened"),
        ({"image": None}, "either image or images"),
        ({"images": ["red.png"]}, "either image or images"),
        ({"image": None, "images": []}, "images"),
        ({"image": ""}, "image must not be empty"),
        ({"answer": " "}, "answer must not be empty"),
        ({"answer": None}, "answer is missing"),
        ({"answer": 12}, "answer should be a valid string, got 12"),
        ({"question": None}, "question is missing"),
        ({"qestion": "?"}, "did you mean question?"),
        ({"colour": "?"}, "colour is an unknown field"),
        ({"stratum": "all"}, "stratum 'all'"),
        ({"evidence": {"box": [0, 0, 1, 1]}}, "evidence"),
        ({"evidence": [{"box": [0, 0, 1]}]}, "evidence 0 box"),
        ({"evidence": [{"box": [0, 0, 1, "9"]}]}, "evidence 0 box 3 should be a valid number"),
        ({"evidence": [{"box": [0, 0, 1, float("nan")]}]}, "evidence 0 box 3"),
        ({"evidence": [{"box": [0, 0, 1, 10**400]}]}, "evidence 0 box 3"),
        ({"evidence": [{"box": [30, 0, 10, 5]}]}, "x0 < x1"),
        ({"evidence": [{"box": [0, 5, 10, 5]}]}, "y0 < y1"),
        ({"evidence": [{"box": [0, 0, 101, 5]}]}, "outside the upright picture of 100 x 80"),
        ({"evidence": [{"box": [-1, 0, 10, 5]}]}, "evidence 0: box [-1.0, 0.0, 10.0, 5.0]"),
        ({"evidence": [{"box": [0, 0, 1, 1], "image": 1}]}, "on image 1, but the row has 1"),
        ({"evidence": [{"box": [0, 0, 1, 1], "image": -1}]}, "evidence 0 image"),
        ({"evidence": [{"box": [0, 0, 1, 1], "phrases": ""}]}, "did you mean phrase?"),
    ],
)
def test_a_bad_row_is_reported_with_its_line_and_reason(folder, changes, reason):
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    text = complaint(folder, plain(), plain(**changes))
    assert text.startswith("1 of 2 rows")
    assert "line 2:" in text
    assert reason in text


@pytest.mark.parametrize(
    "line",
    [b"{", b"[1, 2]", b"12", b"not json", b'{"image": "\xff"}', b"[" * 5000, b'"\\ud800"'],
)
def test_a_line_that_is_no_json_object_is_a_bad_row(folder, line):
    assert "line 1:" in complaint(folder, line, plain())


def test_an_absolute_path_is_refused_even_into_another_folder_that_exists(folder):
    outside = str(folder.parent / "secret.png")
    assert "outside the folder" in complaint(folder, plain(image=outside))


def test_an_id_may_stand_once_in_all_splits_together(folder):
    text = complaint(folder, plain(id="a"), plain(id="b"), plain(id="a", split="train"))
    assert "line 3: id 'a' stands in line 1 already" in text
    assert "line-1" in complaint(folder, plain(), plain(id="line-1"))


def test_all_reasons_of_a_row_are_given_together(folder):
    text = complaint(folder, plain(answer="", extra=1, image=3))
    assert all(word in text for word in ("answer must not", "extra is an", "image should"))


def test_all_bad_rows_are_reported_at_once_the_first_20_in_words(folder):
    rows = [plain(answer="") if n % 2 else plain(image=f"gone{n}.png") for n in range(25)]
    text = complaint(folder, *rows, plain())
    assert text.startswith("25 of 26 rows")
    assert "line 1: there is no picture 'gone0.png'" in text
    assert "line 20: answer must not be empty" in text
    assert "line 21" not in text
    assert text.endswith("and 5 more")


def test_a_bad_row_of_another_split_or_beyond_the_count_stops_the_load_too(folder):
    path = write(folder, plain(), plain(split="train", answer=""))
    with pytest.raises(DataError, match="line 2"):
        Files(path).load("test", store=ImageStore(), count=1)


def test_a_file_that_is_missing_or_empty_is_one_sentence(folder):
    with pytest.raises(DataError, match="can't be read: No such file"):
        Files(folder / "gone.jsonl").load("test", store=ImageStore())
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        Files(folder).load("test", store=ImageStore())
    (folder / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        Files(folder / "rows.jsonl").load("test", store=ImageStore())


def test_a_picture_that_changes_while_in_use_is_noticed(folder):
    task = Files(write(folder, plain()))
    task.load("test", store=ImageStore())
    Image.new("RGB", (100, 80), "green").save(folder / "red.png")
    with pytest.raises(DataError, match="changed while in use"):
        task.load("test", store=ImageStore())


def test_questions_about_one_picture_are_one_cluster(folder):
    Image.new("RGB", (100, 80), "red").save(folder / "copy.png")
    path = write(folder, plain(), plain(image="copy.png"), plain(image="blue.png"))
    first, second, third = (
        dict(s.meta)[CLUSTER] for s in Files(path).load("test", store=ImageStore())
    )
    assert first == second != third


@pytest.mark.parametrize(
    "gold",
    [
        "12",
        "0",
        "-7",
        "-3.5",
        "50%",
        "1,000",
        "yes",
        "No",
        "something else",
        "red",
        "[a, b]",
        "1e400",
    ],
)
def test_the_wrong_answer_is_one_that_no_rule_accepts(folder, gold):
    (sample,) = Files(write(folder, plain(answer=gold))).load("test", store=ImageStore())
    task = Files("rows.jsonl")
    assert task.gold(sample) == gold
    assert not lenient(gold, task.wrong(sample))


# --- by name --------------------------------------------------------------------------------------


def test_tasks_are_made_by_name(folder):
    task = task_named("files", {"path": write(folder, plain())})
    assert isinstance(task, Task)
    assert (task.name, len(task.load("test", store=ImageStore()))) == ("files", 1)
    assert task_named("charts", {"max_image_tokens": 64}).name == "charts"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("flies", {}, "Unknown task 'flies'. Did you mean 'files'?"),
        ("xyz", {}, "There are: charts, files, gqa, grit, mathvista, mix, mme, ovdeval, shapes_t"),
        ("files", {"paht": "x"}, "no option 'paht'. Did you mean 'path'?"),
        ("files", {}, "needs the option 'path'"),
        ("files", {"path": "x", "rubric": 1}, "no option 'rubric'. There are: path."),
        ("charts", {"max_image_token": 9}, "Did you mean 'max_image_tokens'?"),
        ("files", {"path": 3}, "must be a path, got 3"),
    ],
)
def test_what_can_not_be_made_is_refused_with_a_hint(name, options, sentence):
    with pytest.raises(RecipeError) as caught:
        task_named(name, options)
    assert sentence in str(caught.value)


def test_training_reads_a_split_round_after_round_each_in_its_own_order(folder):
    path = write(folder, *(plain(id=f"q{n}", split="train") for n in range(7)))
    task, store = Files(path), ImageStore()
    found = stream(task, "train", store=store, start=0, count=21, seed=3)
    rounds = [[s.id for s, past in found if past == k] for k in range(3)]
    assert all(sorted(ids) == [f"q{n}" for n in range(7)] for ids in rounds)
    assert len({tuple(ids) for ids in rounds}) == 3
    assert [past for _, past in found] == sorted([0, 1, 2] * 7)
    parts = [stream(task, "train", store=store, start=k, count=3, seed=3) for k in range(0, 21, 3)]
    assert [pair for part in parts for pair in part] == found  # a resumed run sees the same
    assert stream(task, "train", store=store, start=0, count=21, seed=4) != found
    with pytest.raises(DataError, match="no rows of split 'validation'"):
        stream(task, "validation", store=store, start=0, count=1, seed=3)


def test_each_seed_reads_other_samples_of_a_split_without_end() -> None:
    drawn = [
        {s.id for s, _ in stream(Charts(), "train", store=ImageStore(), start=0, count=4, seed=k)}
        for k in (0, 1)
    ]
    assert drawn[0] == {f"charts/train/{k}" for k in range(4)}
    assert drawn[0].isdisjoint(drawn[1])
