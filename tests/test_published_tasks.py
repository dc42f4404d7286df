"""The loaders of published data sets, on small files of the same columns that are made here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from saccade import picture_files
from saccade.assemble import data_file, task_of
from saccade.config import Recipe
from saccade.errors import DataError, RecipeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.ladder import runs as ladder_runs
from saccade.ladder.arms import arms_of
from saccade.recipe_files import load_recipe
from saccade.rl import rubric_of
from saccade.tasks import CLUSTER, Task, published
from saccade.tasks.check import answered, check
from saccade.tasks.few import Few
from saccade.tasks.gqa import Gqa
from saccade.tasks.grit import Grit
from saccade.tasks.mathvista import MathVista
from saccade.tasks.mme import Mme
from saccade.tasks.ovdeval import OvdEval
from saccade.tasks.published import Published
from saccade.tasks.tallyqa import TallyQa
from saccade.tasks.vsr import Vsr
from saccade.types import BoxNamed, Evidence, ImageRef, Message, Sample, Text

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def picture(path: Path, size: tuple[int, int] = (100, 80), color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, format="PNG")


def write_lines(path: Path, *rows: object) -> None:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def write_json(path: Path, told: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")


def samples(task: Task, split: str = "test", store: ImageStore | None = None) -> list[Sample]:
    return list(task.load(split, store=store or ImageStore()))


def complaint(task: Task, split: str = "test") -> str:
    with pytest.raises(DataError) as caught:
        task.load(split, store=ImageStore())
    return str(caught.value)


def boxes(sample: Sample) -> list[tuple[float, ...]]:
    return [e.box.as_tuple() for e in sample.evidence]


# --- rows as the data sets have them --------------------------------------------------------------


def vsr_row(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "image": "000000085637.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000085637.jpg",
        "caption": "The banana is at the right side of the cup.",
        "label": 1,
        "relation": "at the right side of",
        "annotator_id": 31,
        "vote_true_validator_id": [2, 6],
        "vote_false_validator_id": [],
    }
    return row | changes


def tally_row(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "answer": 4,
        "data_source": "imported_genome",
        "image": "VG_100K_2/2410408.jpg",
        "image_id": 92410408,
        "issimple": False,
        "question": "How many headlights does the bus have?",
        "question_id": 30095774,
    }
    return row | changes


def grit_row(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "question": "What is across from the truck?",
        "answer": "tv",
        "image": "000000410123.jpg",
        "width": 100,
        "height": 80,
        "bboxs": [[10, 20.5, 30, 40]],
        "dataset": "vsr",
        "split": "val",
    }
    return row | changes


def gqa_row(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "wall (722332)"}],
        "entailed": [],
        "equivalent": ["05451384"],
        "question": "What is on the white wall?",
        "imageId": "2375429",
        "isBalanced": True,
        "groups": {"global": None, "local": "14-wall_on,s"},
        "answer": "pipe",
        "semanticStr": "select: wall (722332)->relate: _,on,s (722335) [0]->query: name [1]",
        "annotations": {
            "answer": {"0": "722335"},
            "question": {"4:6": "722332"},
            "fullAnswer": {"1": "722335", "5": "722332"},
        },
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The pipe is on the wall.",
    }
    return row | changes


def gqa_graph(**changes: object) -> dict[str, object]:
    graph: dict[str, object] = {
        "width": 100,
        "height": 80,
        "location": "outdoors",
        "objects": {
            "722332": {"name": "wall", "x": 0, "y": 5, "w": 60, "h": 70, "attributes": ["white"]},
            "722335": {
                "name": "pipe",
                "x": 10,
                "y": 20,
                "w": 30,
                "h": 15,
                "relations": [{"object": "722332", "name": "on"}],
            },
        },
    }
    return graph | changes


def ovd_file(**changes: object) -> dict[str, object]:
    told: dict[str, object] = {
        "categories": [
            {"supercategory": "object", "id": 0, "name": "dog on the left"},
            {"supercategory": "object", "id": 1, "name": "person behind a car"},
            {"supercategory": "object", "id": 2, "name": "dog on the right"},
        ],
        "annotations": [
            {
                "id": 0,
                "bbox": [5, 10, 20, 30],
                "category_id": 0,
                "image_id": 0,
                "iscrowd": 0,
                "area": 600,
            },
            {"id": 1, "bbox": [1, 2, 10, 20], "category_id": 1, "image_id": 1},
            {"id": 2, "bbox": [50, 40, 20, 35], "category_id": 1, "image_id": 1},
        ],
        "images": [
            {
                "file_name": "64d2.jpg",
                "id": 0,
                "height": 80,
                "width": 100,
                "text": ["dog on the left"],
                "neg_text": ["dog on the right"],
            },
            {
                "file_name": "64d3.jpg",
                "id": 1,
                "height": 80,
                "width": 100,
                "text": ["person behind a car"],
                "neg_text": [],
            },
        ],
    }
    return told | changes


def problem(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "question": "How far is the spring compressed?",
        "image": "images/1.jpg",
        "choices": None,
        "unit": None,
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
        "answer_type": "float",
        "pid": "1",
        "metadata": {"split": "testmini", "task": "textbook question answering", "img_width": 100},
    }
    return row | changes


# --- good folders of each -------------------------------------------------------------------------


def vsr_folder(folder: Path) -> Vsr:
    picture(folder / "000000085637.jpg")
    picture(folder / "val2017" / "2.jpg", color="blue")
    falsehood = vsr_row(image="2.jpg", caption="The cat is under the bed.", label=0)
    write_lines(folder / "test.jsonl", vsr_row(), falsehood, vsr_row(label=0, relation="touching"))
    return Vsr(folder)


def tally_folder(folder: Path) -> TallyQa:
    picture(folder / "VG_100K_2" / "2410408.jpg")
    rows = [tally_row(), tally_row(answer=0, issimple=True)]
    write_json(folder / "test.json", rows)
    train = tally_row()
    del train["issimple"]
    write_json(folder / "train.json", [train])
    return TallyQa(folder)


def grit_folder(folder: Path) -> Grit:
    picture(folder / "vsr" / "000000410123.jpg")
    picture(folder / "tallyqa" / "VG_100K" / "7.jpg", color="blue")
    count = grit_row(
        question="How many cups are there?",
        answer=2,
        image="VG_100K/7.jpg",
        dataset="tallyqa",
        bboxs=[[1, 2, 11, 12], [50, 60, 70, 79]],
    )
    write_lines(folder / "vsr_val.jsonl", grit_row(), grit_row(bboxs=[]))
    write_lines(folder / "tallyqa_val.jsonl", count)
    write_lines(folder / "tallyqa_train_10.jsonl", count)
    write_lines(folder / "vsr_cot_train_10.jsonl", grit_row())
    return Grit(folder)


def gqa_folder(folder: Path) -> Gqa:
    picture(folder / "images" / "2375429.jpg")
    bare = {"question": "Is there a dog?", "answer": "no", "imageId": "2375429"}
    write_json(folder / "testdev_balanced_questions.json", {"05451384": gqa_row(), "7": bare})
    write_json(folder / "graphs.json", {"2375429": gqa_graph()})
    return Gqa(folder, scene_graphs=folder / "graphs.json")


def ovd_folder(folder: Path) -> OvdEval:
    picture(folder / "images" / "position" / "64d2.jpg")
    picture(folder / "images" / "position" / "64d3.jpg", color="blue")
    write_json(folder / "annotations" / "position.json", ovd_file())
    return OvdEval(folder)


def mathvista_folder(folder: Path) -> MathVista:
    picture(folder / "images" / "1.jpg")
    picture(folder / "images" / "2.jpg", color="blue")
    choice = problem(
        question="Which is larger?",
        image="images/2.jpg",
        choices=["Red", "Blue", "Same"],
        answer="Blue",
        question_type="multi_choice",
        answer_type="text",
        precision=None,
    )
    whole = problem(answer="1000", answer_type="integer", unit="g", precision=None)
    listed = problem(answer="[0, 7]", answer_type="list")
    told = {"1": problem(), "2": choice, "3": whole, "4": listed}
    write_json(folder / "annot_testmini.json", told)
    return MathVista(folder)


def mme_folder(folder: Path) -> Mme:
    picture(folder / "existence" / "000000006040.jpg")
    picture(folder / "OCR" / "images" / "0001.jpg", color="blue")
    (folder / "existence.txt").write_text(
        "000000006040.jpg\tIs there a dog? Please answer yes or no.\tYes\n"
        "000000006040.jpg\tIs there a cat? Please answer yes or no.\tNo\tNo, I see none.\n"
    )
    (folder / "OCR.txt").write_text("0001.jpg\tDoes it say exit? Please answer yes or no.\tYes\n")
    (folder / "readme.txt").write_text("not a category\n")
    return Mme(folder)


FOLDERS = {
    "vsr": vsr_folder,
    "tallyqa": tally_folder,
    "grit": grit_folder,
    "gqa": gqa_folder,
    "ovdeval": ovd_folder,
    "mathvista": mathvista_folder,
    "mme": mme_folder,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_loader_keeps_the_promises_of_a_task(tmp_path, name):
    task = FOLDERS[name](tmp_path)
    assert isinstance(task, Task)
    assert task.name == name
    report = check(task, "test", count=None)
    assert report.problems == ()
    assert report.samples == task.size("test") >= 2
    assert (report.gold_accuracy, report.wrong_accuracy) == (1.0, 0.0)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_name_task_split_and_row_and_pictures_are_clusters(tmp_path, name):
    store = ImageStore()
    found = samples(FOLDERS[name](tmp_path), store=store)
    assert [s.id for s in found] == [f"{name}/test/{k}" for k in range(len(found))]
    for sample in found:
        assert dict(sample.meta)[CLUSTER] == sample.images[0].key
        assert store.view(sample.images[0]).pixels.size == (100, 80)
    some = FOLDERS[name](tmp_path).load("test", store=store, start=1, count=1)
    assert [s.id for s in some] == [f"{name}/test/1"]


# --- each data set --------------------------------------------------------------------------------


def test_vsr_asks_whether_a_caption_is_true(tmp_path):
    task = vsr_folder(tmp_path)
    first, second, third = samples(task)
    assert first.question == "True or false: The banana is at the right side of the cup."
    assert [s.answer for s in (first, second, third)] == ["true", "false", "false"]
    assert [s.kind for s in (first, third)] == ["at the right side of", "touching"]
    assert [task.wrong(s) for s in (first, second)] == ["false", "true"]
    assert first.images == third.images != second.images
    assert dict(first.meta)["choices"] == "2"
    assert first.stratum == "relations"  # told apart from counts in a mix


def test_vsr_refuses_labels_other_than_0_and_1(tmp_path):
    task = vsr_folder(tmp_path)
    write_lines(tmp_path / "dev.jsonl", vsr_row(), b"", vsr_row(label=2), b"{")
    text = complaint(task, "validation")
    assert text.startswith("2 of 3 rows")
    assert "dev.jsonl can't be used; mend or remove them, or set skip_bad to leave " in text
    assert "dev.jsonl line 3: label should be 0 or 1, got 2" in text
    assert "dev.jsonl line 4: is not JSON" in text


def test_tallyqa_counts_by_simple_and_complex_questions(tmp_path):
    task = tally_folder(tmp_path)
    first, second = samples(task)
    assert (first.question, first.answer) == ("How many headlights does the bus have?", "4")
    assert (second.answer, second.kind) == ("0", "count")
    assert [first.stratum, second.stratum] == ["complex", "simple"]
    [train] = samples(task, "train")
    assert (train.id, train.stratum) == ("tallyqa/train/0", "")


def test_tallyqa_refuses_counts_that_are_none(tmp_path):
    task = tally_folder(tmp_path)
    write_json(tmp_path / "train.json", [tally_row(), tally_row(answer="4"), tally_row(answer=-1)])
    text = complaint(task, "train")
    assert "train.json row 2: answer should be a valid integer, got '4'" in text
    assert "train.json row 3: answer should be greater than or equal to 0, got -1" in text


def test_grit_has_its_boxes_as_corners_in_original_pixels(tmp_path):
    task = grit_folder(tmp_path)
    first, without, count = samples(task)
    assert (first.question, first.answer, first.kind) == (
        "What is across from the truck?",
        "tv",
        "vsr",
    )
    assert boxes(first) == [(10, 20.5, 30, 40)]
    assert without.evidence == ()
    assert (count.answer, count.kind) == ("2", "count")
    assert boxes(count) == [(1, 2, 11, 12), (50, 60, 70, 79)]
    assert [s.answer for s in samples(task, "train")] == ["2", "tv"]
    assert [s.id for s in samples(task, "vsr_val")] == ["grit/vsr_val/0", "grit/vsr_val/1"]


def test_grit_refuses_boxes_of_a_picture_of_another_size(tmp_path):
    task = grit_folder(tmp_path)
    rows = [grit_row(), grit_row(width=504), grit_row(height=60, bboxs=[])]
    write_lines(tmp_path / "vsr_val.jsonl", *rows)
    text = complaint(task)
    assert "line 2: states 504 x 80 pixels, but its picture has 100 x 80; find the original" in text
    assert "line 3: states 100 x 60 pixels" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bboxs": [[30, 20, 10, 40]]}, "bboxs 0 needs x0 < x1 and y0 < y1, got [30.0, 20.0"),
        ({"bboxs": [[1, 2, 3]]}, "bboxs 0"),
        ({"bboxs": [[1, 2, 3, float("nan")]]}, "bboxs 0 3"),
        ({"bboxs": [[200, 10, 300, 20]]}, "box 0, (200.0, 10.0, 300.0, 20.0) as corners, lies out"),
        ({"width": None}, "bboxs need width and height"),
        ({"answer": [[1, 2, 3, 4]]}, "answer must be words or a number, got [[1, 2, 3, 4]]"),
        ({"answer": " "}, "answer must be words or a number"),
        ({"dataset": "ovd_position"}, "ask for them with task ovdeval"),
        ({"question": ""}, "question must not be empty"),
        ({"image": "../secret.png"}, "outside the folder of pictures"),
        ({"image": "../gone.png"}, "outside the folder of pictures"),
        ({"image": "/etc/passwd"}, "outside the folder of pictures"),
    ],
)
def test_a_broken_row_of_grit_names_its_line_and_the_reason(tmp_path, changes, reason):
    task = grit_folder(tmp_path)
    picture(tmp_path.parent / "secret.png")
    write_lines(tmp_path / "vsr_val.jsonl", grit_row(), grit_row(**changes))
    text = complaint(task, "vsr_val")
    assert text.startswith("1 of 2 rows")
    assert "vsr_val.jsonl line 2: " in text
    assert reason in text


def test_boxes_over_the_border_are_cut_and_counted_and_a_whole_picture_is_no_evidence(
    tmp_path, capsys
):
    task = grit_folder(tmp_path)
    over, whole = [90, 70, 100.5, 83], [0, 0, 100, 80]
    write_lines(tmp_path / "vsr_val.jsonl", grit_row(bboxs=[over, whole, [1, 2, 3, 4]]))
    [sample] = samples(task, "vsr_val")
    assert boxes(sample) == [(90, 70, 100, 80), (1, 2, 3, 4)]
    assert "grit/vsr_val: boxes cut at the border of their picture: 1." in capsys.readouterr().err


def test_gqa_takes_evidence_from_the_objects_of_its_scene_graph(tmp_path):
    pipe, bare = samples(gqa_folder(tmp_path))
    assert (pipe.question, pipe.answer, pipe.kind) == (
        "What is on the white wall?",
        "pipe",
        "query",
    )
    assert [(e.phrase, e.box) for e in pipe.evidence] == [
        ("wall", Box(0, 5, 60, 75)),
        ("pipe", Box(10, 20, 40, 35)),
    ]
    assert bare.evidence == ()
    assert bare.kind == ""
    plain = samples(Gqa(tmp_path))
    assert [s.evidence for s in plain] == [(), ()]
    assert [s.answer for s in plain] == ["pipe", "no"]


def test_gqa_reads_the_objects_of_question_answer_and_full_answer(tmp_path):
    task = gqa_folder(tmp_path)
    names = "abcd"
    objects = {
        n: {"name": f"thing {n}", "x": 10 * k, "y": 1, "w": 5, "h": 5} for k, n in enumerate(names)
    }
    words = {"question": {"1": "a"}, "answer": {"0": "b"}, "fullAnswer": {"2": "c,d", "3": "a"}}
    write_json(tmp_path / "testdev_balanced_questions.json", {"1": gqa_row(annotations=words)})
    write_json(tmp_path / "graphs.json", {"2375429": gqa_graph(objects=objects)})
    [sample] = samples(task)
    assert [e.phrase for e in sample.evidence] == ["thing a", "thing b", "thing c", "thing d"]


@pytest.mark.parametrize(
    ("graphs", "reason"),
    [
        ({}, "picture 2375429 has no scene graph; leave the option scene_graphs out"),
        ({"2375429": gqa_graph(objects={})}, "names object 722332, which its scene graph has not"),
        ({"2375429": gqa_graph(width=90)}, "states 90 x 80 pixels"),
        ({"2375429": gqa_graph(width=0)}, "the scene graph of picture 2375429: width should be"),
        (
            {"2375429": gqa_graph(objects={"722332": {"name": "wall", "x": 0, "y": 0, "w": 0}})},
            "object 722332 of its scene graph: w should be greater than 0, got 0; h is missing",
        ),
    ],
)
def test_gqa_refuses_questions_that_their_scene_graph_does_not_fit(tmp_path, graphs, reason):
    task = gqa_folder(tmp_path)
    write_json(tmp_path / "testdev_balanced_questions.json", {"05451384": gqa_row()})
    write_json(tmp_path / "graphs.json", graphs)
    text = complaint(task)
    assert "testdev_balanced_questions.json row 05451384: " in text
    assert reason in text


def test_ovdeval_has_its_boxes_as_corner_and_size_and_scores_by_them(tmp_path):
    task = ovd_folder(tmp_path)
    dog, person = samples(task)
    assert dog.question == (
        "Where is this: dog on the left? Name a box of each such thing in your reasoning, then "
        "answer with how many there are."
    )
    assert (dog.answer, dog.kind) == ("1", "position")
    assert [(e.phrase, e.box) for e in dog.evidence] == [("dog on the left", Box(5, 10, 25, 40))]
    assert person.answer == "2"
    assert boxes(person) == [(1, 2, 11, 22), (50, 40, 70, 75)]


def test_ovdeval_pays_for_boxes_and_only_with_the_right_number(tmp_path):
    task = ovd_folder(tmp_path)
    dog, person = samples(task)

    def earned(sample: Sample, said: str, *named: Box) -> float | None:
        episode = answered(sample, said)
        image = sample.images[0]
        [turn] = episode.turns
        turn = turn._replace(named=tuple(BoxNamed(image, box) for box in named))
        return task.rubric.score(type(episode)(**_fields(episode) | {"turns": (turn,)})).value

    gold = tuple(e.box for e in person.evidence)
    assert earned(person, "2", *gold) == 1.0
    assert earned(person, "2") == pytest.approx(0.1)
    assert earned(person, "3", *gold) == 0.0
    assert 0.4 < (earned(person, "2", gold[0]) or 0) < 0.9
    assert earned(person, "2", *(Box(b.x0, b.y0, b.x1 + 20, b.y1) for b in gold)) < 0.6
    assert earned(dog, "1", dog.evidence[0].box) == 1.0


def _fields(episode: object) -> dict[str, object]:
    return {name: getattr(episode, name) for name in type(episode).__dataclass_fields__}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": []}, "image 0, 'dog on the left': text names it, but no annotation has"),
        (
            {"annotations": [{"bbox": [5, 10, 0, 30], "category_id": 0, "image_id": 0}]},
            "bbox [5.0, 10.0, 0.0, 30.0] has no area",
        ),
        (
            {"annotations": [{"bbox": [5, 10, 5], "category_id": 0, "image_id": 0}]},
            "position.json annotations 1: bbox",
        ),
        (
            {"annotations": [{"bbox": [5, 10, 5, 5], "category_id": 9, "image_id": 0}]},
            "position.json annotations 1: category 9 is not in the file",
        ),
        (
            {"annotations": [{"bbox": [5, 10, 5, 5], "category_id": 0, "image_id": 9}]},
            "position.json annotations 1: image 9 is not in the file",
        ),
        ({"images": None}, "has no list 'images'; check that it is a file of OVDEval"),
        ({"images": [{"id": 0, "file_name": "64d2.jpg", "width": 100}]}, "height is missing"),
    ],
)
def test_ovdeval_refuses_a_file_that_contradicts_itself(tmp_path, changes, reason):
    task = ovd_folder(tmp_path)
    write_json(tmp_path / "annotations" / "position.json", ovd_file(**changes))
    assert reason in complaint(task)


def test_ovdeval_reads_other_subsets_and_flat_folders(tmp_path):
    told = ovd_file()
    write_json(tmp_path / "color.json", told)
    for name in ("64d2.jpg", "64d3.jpg"):
        picture(tmp_path / "color" / name)
    assert [s.kind for s in samples(OvdEval(tmp_path, subset="color"))] == ["color", "color"]
    with pytest.raises(RecipeError, match=r"no subset 'colour'\. Available: celebrity, color"):
        OvdEval(tmp_path, subset="colour")


def test_mathvista_puts_choices_and_the_form_of_the_answer_into_the_question(tmp_path):
    task = mathvista_folder(tmp_path)
    number, choice, whole, listed = samples(task)
    assert number.question == (
        "How far is the spring compressed?\nAnswer with a number, rounded to 1 decimal places."
    )
    assert (number.answer, number.kind) == ("1.2", "textbook question answering")
    assert choice.question == (
        "Which is larger?\n(A) Red\n(B) Blue\n(C) Same\nAnswer with the letter of the right choice."
    )
    assert (choice.answer, task.wrong(choice)) == ("B", "A")
    assert dict(choice.meta)["choices"] == "3"
    assert whole.question == (
        "How far is the spring compressed? (Unit: g)\nAnswer with a whole number."
    )
    assert listed.question.endswith("Answer with a list in brackets, such as [1, 2, 3].")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question_type": "essay"}, "question_type should be 'multi_choice' or 'free_form'"),
        ({"question_type": "multi_choice"}, "choices must be 2 to 26, got 0"),
        ({"answer": ""}, "answer must not be empty"),
        (
            {"question_type": "multi_choice", "choices": ["1.2", "2", "1.2"]},
            "answer '1.2' must stand among the choices once, it stands there 2 times",
        ),
        (
            {"question_type": "multi_choice", "choices": ["1", "2"]},
            "answer '1.2' must stand among the choices once, it stands there 0 times",
        ),
    ],
)
def test_mathvista_refuses_problems_without_a_sure_answer(tmp_path, changes, reason):
    task = mathvista_folder(tmp_path)
    told = {"1": problem(), "17": problem(**changes)}
    write_json(tmp_path / "annot_testmini.json", told)
    text = complaint(task)
    assert "annot_testmini.json row 17: " in text
    assert reason in text


def test_mme_asks_twice_about_a_picture_and_calls_the_pair_a_cluster(tmp_path):
    task = mme_folder(tmp_path)
    dog, cat, ocr = samples(task)
    assert dog.question == "Is there a dog? Please answer yes or no."
    assert [s.answer for s in (dog, cat, ocr)] == ["yes", "no", "yes"]
    assert [task.wrong(s) for s in (dog, cat)] == ["no", "yes"]
    assert [s.kind for s in (dog, cat, ocr)] == ["existence", "existence", "OCR"]
    clusters = [dict(s.meta)[CLUSTER] for s in (dog, cat, ocr)]
    assert clusters[0] == clusters[1] != clusters[2]
    assert [s.id for s in samples(task, "OCR")] == ["mme/OCR/0"]


def test_mme_refuses_lines_that_lack_a_column_or_say_neither_yes_nor_no(tmp_path):
    task = mme_folder(tmp_path)
    (tmp_path / "OCR.txt").write_text("0001.jpg\tExit?\tYes\n0001.jpg\tExit?\n0001.jpg\tE?\tMaybe")
    text = complaint(task)
    assert "2 of 5 rows" in text
    assert "OCR.txt line 2: answer is missing" in text
    assert "OCR.txt line 3: answer must be Yes or No, got 'Maybe'" in text


# --- pictures -------------------------------------------------------------------------------------


def with_lost_pictures(folder: Path, count: int = 30) -> None:
    vsr_folder(folder)
    (folder / "broken.jpg").write_bytes((folder / "000000085637.jpg").read_bytes()[:60])
    names = [f"gone{k}.jpg" for k in range(count)]
    rows = [vsr_row(image=name) for name in [*names, "gone0.jpg", "broken.jpg"]]
    write_lines(folder / "test.jsonl", vsr_row(), *rows, vsr_row(label=0))


def test_lost_pictures_are_all_listed_each_once_in_one_sentence(tmp_path):
    with_lost_pictures(tmp_path)
    head, *rest = complaint(Vsr(tmp_path)).split("\n")
    assert head == (
        f"31 of 32 pictures in {tmp_path} are missing or broken; name another folder with option "
        "images, download them, or set skip_missing to do without:"
    )
    assert len(rest) == 31
    for k in range(30):
        assert sum(f"There is no picture 'gone{k}.jpg' (nor " in line for line in rest) == 1
    assert sum("broken.jpg is a broken" in line for line in rest) == 1
    assert all(line.startswith("  ") and line.endswith(".") for line in rest)


def test_lost_pictures_and_bad_rows_are_reported_together(tmp_path):
    with_lost_pictures(tmp_path, 1)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(json.dumps(vsr_row(caption="")))
    text = complaint(Vsr(tmp_path, skip_missing=True))
    assert "line 6: caption must not be empty" in text
    assert "There is no picture 'gone0.jpg'" in text


def test_rows_are_left_out_only_on_request_and_that_is_said(tmp_path, capsys):
    with_lost_pictures(tmp_path)
    task = Vsr(tmp_path, skip_missing=True)
    assert task.size("test") == 2
    assert [s.id for s in samples(task)] == ["vsr/test/0", "vsr/test/33"]
    said = capsys.readouterr().err
    note = "vsr/test: left out 32 of 34 rows, for pictures that are missing or broken: 31."
    assert said.count(note) == 1
    assert check(task, "test").problems == ()


def test_what_is_left_out_is_listed_and_how_many_more_there_are(tmp_path, capsys):
    with_lost_pictures(tmp_path)
    Vsr(tmp_path, skip_missing=True).size("test")
    told = capsys.readouterr().err.rstrip().split("\n")
    [at] = [n for n, line in enumerate(told) if "left out 32 of 34 rows" in line]
    rest = told[at + 1 :]
    assert len(rest) == 21
    assert "broken.jpg is a broken" in rest[0]
    assert "There is no picture 'gone0.jpg' (nor " in rest[1]
    assert rest[-1] == "  and 11 more (skip_missing: false lists all)"


BAD = {
    "gqa": ("05451384", "object 722332 of its scene graph: w should be greater than 0, got 0"),
    "mathvista": ("row 2", "answer 'Blue' must stand among the choices once, it stands there 2"),
    "grit": ("vsr_val.jsonl line 1", "bboxs 0 needs x0 < x1 and y0 < y1, got [10.0, 20.0, 10.0, 4"),
}


def spoil(folder: Path, name: str) -> None:
    """One row that can't be used, among others that can."""
    if name == "gqa":
        graph = gqa_graph()
        graph["objects"]["722332"]["w"] = 0  # type: ignore[index]
        write_json(folder / "graphs.json", {"2375429": graph})
    elif name == "mathvista":
        told = json.loads((folder / "annot_testmini.json").read_text())
        told["2"]["choices"] = ["Blue", "Red", "Blue"]
        write_json(folder / "annot_testmini.json", told)
    else:
        write_lines(folder / "vsr_val.jsonl", grit_row(bboxs=[[10, 20, 10, 40]]), grit_row())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_refuses_a_split_unless_it_is_to_be_left_out_and_then_it_is_listed(
    tmp_path, name, capsys
):
    task = FOLDERS[name](tmp_path)
    whole = [s.id for s in samples(task)]
    spoil(tmp_path, name)
    where, reason = BAD[name]
    options = {"scene_graphs": tmp_path / "graphs.json"} if name == "gqa" else {}
    text = complaint(type(task)(tmp_path, **options))
    assert "or set skip_bad to leave them out:" in text
    assert where in text
    assert reason in text
    capsys.readouterr()
    kept = [s.id for s in samples(type(task)(tmp_path, skip_bad=True, **options))]
    assert len(kept) == len(whole) - 1
    assert set(kept) < set(whole)  # the others keep their numbers
    said = capsys.readouterr().err
    assert f"left out 1 of {len(whole)} rows, which can't be used.\n" in said
    assert where in said
    assert reason in said


def test_bad_rows_and_lost_pictures_are_left_out_by_options_of_their_own(tmp_path):
    with_lost_pictures(tmp_path, 1)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(json.dumps(vsr_row(caption="")))
    text = complaint(Vsr(tmp_path, skip_bad=True))
    assert "There is no picture 'gone0.jpg'" in text
    assert "or set skip_bad" not in text
    assert Vsr(tmp_path, skip_bad=True, skip_missing=True).size("test") == 2


def test_a_split_of_bad_rows_alone_is_an_error_all_the_same(tmp_path):
    vsr_folder(tmp_path)
    write_lines(tmp_path / "test.jsonl", vsr_row(caption=""))
    assert "1 of 1 rows" in complaint(Vsr(tmp_path, skip_bad=True))


@pytest.mark.parametrize(
    ("bad", "kept"),
    [
        ({"bbox": [5, 10, 0, 30], "category_id": 1, "image_id": 1}, ["dog on the left"]),
        ({"bbox": [5, 10, 5], "category_id": 1, "image_id": 1}, ["dog on the left"]),
        ({"bbox": [5, 10, 5, 5], "category_id": 9, "image_id": 1}, ["dog on the left"]),
        ({"bbox": [5, 10, 5, 5], "category_id": 1, "image_id": 9}, ["dog on", "person behind"]),
        ({"bbox": [5, 10, 5, 5], "category_id": 1}, []),
    ],
)
def test_ovdeval_asks_nothing_that_a_box_left_out_may_have_answered(tmp_path, bad, kept):
    task = ovd_folder(tmp_path)
    told = ovd_file()
    told["annotations"].append(bad)  # type: ignore[attr-defined]
    write_json(tmp_path / "annotations" / "position.json", told)
    task = OvdEval(tmp_path, skip_bad=True)
    if not kept:
        assert "an annotation that may be its own can't be used" in complaint(task)
        return
    asked = [s.question for s in samples(task)]
    assert len(asked) == len(kept)
    for question, phrase in zip(asked, kept, strict=True):
        assert phrase in question


def test_pictures_are_opened_as_they_are_read_where_a_split_is_large(tmp_path, monkeypatch):
    with_lost_pictures(tmp_path)
    opened: list[str] = []

    def load_image(path: Path) -> Image.Image:
        opened.append(path.name)
        return picture_files.load_image(path)

    monkeypatch.setattr(published, "load_image", load_image)
    task = Vsr(tmp_path, check="read", skip_missing=True)
    assert task.size("test") == 3  # one is broken, which is not known yet
    write_lines(tmp_path / "train.jsonl", *[vsr_row(label=k % 2) for k in range(9)])
    few = Few(task, items=2, seed=0)
    assert few.size("train") == 2
    assert opened == []
    [first] = task.load("test", store=ImageStore(), count=1)
    assert opened == ["000000085637.jpg"]
    assert dict(first.meta)[CLUSTER] == first.images[0].key
    with pytest.raises(DataError, match=r"broken\.jpg is a broken"):
        task.load("test", store=ImageStore(), start=1, count=1)
    picture(tmp_path / "000000085637.jpg", color="green")
    assert "changed while in use" in complaint(task)


def test_boxes_are_checked_as_their_pictures_are_opened(tmp_path):
    grit_folder(tmp_path)
    write_lines(tmp_path / "vsr_val.jsonl", grit_row(width=99), grit_row())
    task = Grit(tmp_path, check="read")
    assert task.size("test") == 3
    text = complaint(task)
    assert "vsr_val.jsonl line 1 can't be used (states 99 x 80 pixels" in text
    assert Grit(tmp_path, skip_bad=True).size("test") == 2


def test_a_split_whose_pictures_are_all_lost_is_an_error_all_the_same(tmp_path):
    write_lines(tmp_path / "test.jsonl", vsr_row())
    text = complaint(Vsr(tmp_path, skip_missing=True))
    assert "1 of 1 pictures in" in text
    assert "set skip_missing" not in text


def test_pictures_may_lie_in_a_folder_of_their_own(tmp_path):
    vsr_folder(tmp_path / "rows")
    picture(tmp_path / "coco" / "train2017" / "000000085637.jpg", color="green")
    picture(tmp_path / "coco" / "2.jpg")
    store = ImageStore()
    first, *_ = samples(Vsr(tmp_path / "rows", images=tmp_path / "coco"), store=store)
    assert store.view(first.images[0]).pixels.getpixel((1, 1)) == (0, 128, 0)
    with pytest.raises(DataError, match=r"no folder of pictures .*gone; name it with"):
        Vsr(tmp_path / "rows", images=tmp_path / "gone").size("test")


def test_a_link_out_of_the_folder_of_pictures_is_refused(tmp_path):
    picture(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "000000085637.jpg").symlink_to(tmp_path / "secret.png")
    write_lines(tmp_path / "data" / "test.jsonl", vsr_row())
    text = complaint(Vsr(tmp_path / "data", skip_missing=True))
    assert "line 1: picture '000000085637.jpg' lies outside the folder of pictures" in text


def test_a_picture_that_changes_while_in_use_is_noticed(tmp_path):
    task = vsr_folder(tmp_path)
    task.size("test")
    picture(tmp_path / "000000085637.jpg", color="green")
    assert "changed while in use; start again" in complaint(task)


# --- files and splits -----------------------------------------------------------------------------


def test_one_file_is_one_split(tmp_path):
    tally_folder(tmp_path)
    assert TallyQa(tmp_path / "train.json").size("train") == 1
    assert "is split 'train' of task tallyqa" in complaint(TallyQa(tmp_path / "train.json"))
    (tmp_path / "test.json").rename(tmp_path / "mine.json")
    assert TallyQa(tmp_path / "mine.json").size("test") == 2
    assert TallyQa(tmp_path).size("mine") == 2


@pytest.mark.parametrize("split", ["gone", "validation", "../test", ""])
def test_a_split_that_is_not_there_is_refused_with_the_files_that_are(tmp_path, split):
    text = complaint(tally_folder(tmp_path), split)
    assert f"no split {split!r}" in text
    assert "there are: test.json, train.json." in text


def test_files_that_are_no_rows_are_one_sentence(tmp_path):
    task = tally_folder(tmp_path)
    for told, reason in (
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must hold a JSON list, it holds a dict"),
        ("[]", "holds no rows"),
    ):
        (tmp_path / "test.json").write_text(told)
        assert reason in complaint(task)
    assert "There is no file or folder" in complaint(TallyQa(tmp_path / "gone"))


# --- shipped recipes ------------------------------------------------------------------------------

OF_REAL_MODELS = ("grounded-qwen2.5-vl-3b", "grounded-internvl3-2b")


@pytest.mark.parametrize("name", OF_REAL_MODELS)
def test_the_command_in_a_recipe_measures_boxes_on_rows_that_have_them(tmp_path, name):
    file = data_file(Path(f"{name}.yaml"))
    lines = file.read_text().splitlines()
    [command] = [line.split("eval ")[1] for line in lines if line.startswith("#   saccade eval")]
    told, *overrides = shlex.split(command.replace("data/grit", str(tmp_path)))
    assert told == name
    grit_folder(tmp_path)
    recipe = load_recipe(file, overrides)
    found = samples(task_of(recipe), recipe.eval.split)
    assert [len(s.evidence) for s in found] == [1, 0, 2]
    assert recipe.eval.items >= 288 + 491  # the published rows of VSR and TallyQA


def filled_in(name: str, folder: Path) -> Recipe:
    """A recipe of a real model with small files of both data sets, as they are published."""
    recipe = load_recipe(data_file(Path(f"{name}.yaml")))
    vsr_folder(folder / "vsr")
    tally_folder(folder / "tally")
    lines = (folder / "vsr" / "test.jsonl").read_text()
    for split in ("train", "dev"):
        (folder / "vsr" / f"{split}.jsonl").write_text(lines)
    parts = [dict(part) for part in recipe.task.options["parts"]]  # type: ignore[union-attr]
    parts[0]["path"], parts[1]["path"] = str(folder / "vsr"), str(folder / "tally")
    task = recipe.task.model_copy(update={"options": {"parts": parts}})
    return recipe.model_copy(update={"task": task, "run": folder / "run"})


@pytest.mark.parametrize("name", OF_REAL_MODELS)
def test_the_recipes_of_real_models_ask_for_a_form_and_open_few_pictures(tmp_path, name):
    recipe = filled_in(name, tmp_path)
    parts = recipe.task.options["parts"]
    assert [part["check"] for part in parts] == ["read", "read"]  # type: ignore[union-attr, index]
    asked = samples(task_of(recipe), "train")
    assert {s.question.rpartition("Answer ")[2] for s in asked} == {
        "with true or false.",
        "with a number.",
    }


@pytest.mark.parametrize("name", OF_REAL_MODELS)
def test_the_ladders_of_real_models_need_no_more_splits_than_the_data_has(tmp_path, name):
    """TallyQA has no split for validation, and with one rate for each arm none is chosen on it."""
    recipe = filled_in(name, tmp_path)
    found = ladder_runs._Ladder(recipe, arms_of(recipe.ladder))
    ladder_runs._check_arms(found)
    choosing = recipe.ladder.model_copy(update={"sft_rates": (1e-5, 1e-4)})
    found.recipe = recipe.model_copy(update={"ladder": choosing})
    with pytest.raises(DataError, match="has no split 'validation'"):
        ladder_runs._check_arms(found)


@pytest.mark.parametrize("name", OF_REAL_MODELS)
@pytest.mark.parametrize(
    ("gold", "said", "is_right"),
    [
        *[("3", said, True) for said in ("3", "three", "Three.", "3 cups", "There are 3.")],
        *[("true", said, True) for said in ("true", "True.", "Yes", "Yes, it is.")],
        *[("false", said, True) for said in ("False", "No", "no.")],
        *[("3", said, False) for said in ("4", "two", "There are 2.", "3 or 4", "many", "")],
        *[("15", said, False) for said in ("14", "16", "sixteen cups")],
        *[("true", said, False) for said in ("false", "No", "not true", "true or false", "cup")],
        *[("false", said, False) for said in ("true", "Yes.", "3")],
    ],
)
def test_the_recipes_of_real_models_pay_for_right_answers_in_any_words(name, gold, said, is_right):
    """A real model writes "three" or "Yes": by the strict rule it would never be paid."""
    rubric = rubric_of(load_recipe(data_file(Path(f"{name}.yaml"))).rl)
    kind = "count" if gold.isdigit() else "touching"
    ref = ImageRef("a" * 64, 100, 80)
    evidence = (Evidence(ref, Box(10, 10, 30, 30), "cup"),)
    asked = Sample("s", "?", (ref,), gold, kind=kind, evidence=evidence)
    form = "<think> a cup there {0} </think> <rethink> so {0} </rethink> <answer> {0} </answer>"
    value = rubric.score(
        replace(answered(asked, said), messages=(Message("assistant", (Text(form.format(said)),)),))
    ).value
    assert value is not None
    assert (value >= 1.0) == is_right
    assert (value == 0.0) != is_right  # nor are boxes paid beside a wrong answer


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:7], COMMIT + "0", "G" * 40, 1])
def test_only_a_whole_commit_is_a_revision(revision):
    with pytest.raises(RecipeError, match="must be a whole commit, 40 of 0-9 and a-f"):
        Vsr(repo="cambridgeltl/vsr_random", revision=revision)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "needs either the option 'path'"),
        ({"path": "x", "repo": "a/b", "revision": COMMIT}, "needs either the option 'path'"),
        ({"path": "x", "revision": COMMIT}, "belongs to 'repo', which is not set"),
        ({"repo": "b", "revision": COMMIT}, "must be OWNER/NAME, got 'b'"),
        ({"repo": "../a/b", "revision": COMMIT}, "must be OWNER/NAME"),
        ({"path": 3}, "'path' of task vsr must be a path, got 3"),
        ({"path": "x", "images": 3}, "'images' of task vsr must be a path, got 3"),
        ({"path": "x", "skip_missing": "yes"}, "must be true or false, got 'yes'"),
        ({"path": "x", "skip_bad": 1}, "'skip_bad' of task vsr must be true or false, got 1"),
        ({"path": "x", "check": "no"}, "'check' of task vsr must be all or read, got 'no'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(options, sentence):
    with pytest.raises(RecipeError) as caught:
        Vsr(**options)
    assert sentence in str(caught.value)


def as_the_hub_caches(cache: Path, made: Path) -> Path:
    """A snapshot as the hub's package keeps it: links to files that are named by their content."""
    snapshot = cache / "datasets--a--b" / "snapshots" / COMMIT
    for number, file in enumerate(p for p in sorted(made.rglob("*")) if p.is_file()):
        blob = cache / "datasets--a--b" / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link = snapshot / file.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def test_a_data_set_of_the_hub_is_fetched_at_its_commit_without_code(tmp_path, monkeypatch):
    vsr_folder(tmp_path / "made")
    snapshot = as_the_hub_caches(tmp_path / "cache", tmp_path / "made")
    asked: list[tuple[str, Mapping[str, object]]] = []

    def snapshot_download(repo: str, **options: object) -> str:
        asked.append((repo, options))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    task = Vsr(repo="a/b", revision=COMMIT)
    assert asked == []  # nothing before the first load
    assert [s.answer for s in samples(task)] == ["true", "false", "false"]
    samples(task)
    [(repo, options)] = asked
    assert (repo, options["repo_type"], options["revision"]) == ("a/b", "dataset", COMMIT)
    assert "*.py" in options["ignore_patterns"]


def test_a_link_out_of_the_cache_of_the_hub_is_refused(tmp_path, monkeypatch):
    vsr_folder(tmp_path / "made")
    snapshot = as_the_hub_caches(tmp_path / "cache", tmp_path / "made")
    picture(tmp_path / "secret.png")
    (snapshot / "000000085637.jpg").unlink()
    (snapshot / "000000085637.jpg").symlink_to(tmp_path / "secret.png")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    assert "outside the folder of pictures" in complaint(Vsr(repo="a/b", revision=COMMIT))


def test_a_hub_that_is_out_of_reach_is_one_sentence_with_a_remedy(monkeypatch):
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host.\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    text = complaint(Vsr(repo="a/b", revision=COMMIT))
    assert text == (
        "Data set 'a/b' can't be fetched (no route to host): download it on another machine, copy "
        "it over and give its folder as path."
    )


def test_every_loader_takes_the_same_options_of_its_own_and_of_all():
    for kind in (Vsr, TallyQa, Grit, Gqa, OvdEval, MathVista, Mme):
        assert issubclass(kind, Published)
        options = {"skip_missing": True, "skip_bad": True, "check": "read"}
        task = kind(repo="a/b", revision=COMMIT, images="x", **options)
        assert (task.skip_missing, task.skip_bad, task.check) == (True, True, "read")
