from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from PIL import Image

from saccade.errors import DataError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.rewards import Rubric, answer_published, looked_at_evidence
from saccade.tasks.check import answered, check
from saccade.types import Episode, Evidence, Sample

PICTURE = root_view(Image.new("RGB", (100, 80)))
BOTH = Rubric(((answer_published, 1.0), (looked_at_evidence, 0.5)))
OTHER = root_view(Image.new("RGB", (50, 50)))


def sample(number: int = 0, **changes: object) -> Sample:
    evidence = (Evidence(PICTURE.ref, Box(10, 10, 40, 30)),)
    plain = Sample(f"s{number}", "How much?", (PICTURE.ref,), f"{number + 2}", evidence)
    return replace(plain, **changes)


@dataclass
class Fake:
    """A task with the given samples, which can be told to break one promise."""

    splits: dict[str, list[Sample]]
    rubric: Rubric = field(default_factory=lambda: BOTH)
    lie: str = ""
    flatter: bool = False
    name: str = "fake"

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        if split not in self.splits:
            raise DataError(f"No split {split}.")
        return self.splits[split][start : None if count is None else start + count]

    def size(self, split: str) -> int:
        return len(self.load(split, store=ImageStore()))

    def gold(self, sample: Sample) -> str:
        return self.lie or sample.answer

    def wrong(self, sample: Sample) -> str:
        return sample.answer if self.flatter else "nothing"


def problems(*samples: Sample, **changes: object) -> str:
    report = check(Fake({"test": list(samples)}, **changes), "test")
    assert report.ok == (not report.problems)
    return "\n".join(report.problems)


def test_a_good_task_has_no_problems():
    splits = {"test": [sample(n) for n in range(5)], "train": [sample(n) for n in range(5, 9)]}
    report = check(Fake(splits), "test", count=4)
    assert report.ok
    assert (report.samples, report.gold_accuracy, report.wrong_accuracy) == (4, 1.0, 0.0)
    assert report.compared == ("train",)


def test_gold_answers_must_be_right():
    text = problems(sample(0), sample(1), lie="3")
    assert "'s0': the strict rule rejects the gold answer '3'" in text
    assert "'s0': the gold answer '3' scores -0.5, others 1.5" in text
    assert "'s1': the gold" not in text


def test_wrong_answers_must_be_wrong():
    text = problems(sample(0), flatter=True)
    assert "the wrong answer '2' scores 1.5, the gold one 1.5" in text
    assert "the strict rule accepts the wrong answer '2'" in text


def test_a_rubric_that_can_not_say_is_a_problem():
    from saccade.rewards import Reward

    silent = Reward("silent", "Never says.", lambda episode, sample: None)
    assert "can't score the gold answer" in problems(sample(), rubric=Rubric(((silent, 1.0),)))


def test_samples_without_evidence_are_not_measured_by_those_with_it():
    assert problems(sample(0), sample(1, evidence=())) == ""


@pytest.mark.parametrize(
    ("evidence", "sentence"),
    [
        (Evidence(PICTURE.ref, Box(50, 10, 101, 30)), "reaches outside its image"),
        (Evidence(PICTURE.ref, Box(-1, 10, 20, 30)), "reaches outside its image"),
        (Evidence(PICTURE.ref, Box(200, 10, 220, 30)), "reaches outside its image"),
        (Evidence(OTHER.ref, Box(1, 1, 2, 2)), "image that the sample does not have"),
        (Evidence(PICTURE.ref, Box(0, 0, 100, 80)), "whole image, which no gaze covers"),
    ],
)
def test_evidence_must_be_a_part_of_the_samples_images(evidence, sentence):
    assert sentence in problems(sample(evidence=(evidence,)))


def test_ids_must_be_unique_in_a_split_and_between_splits():
    assert "'s1' stands 2 times in test" in problems(sample(1), sample(1))
    fake = Fake({"test": [sample(1)], "train": [sample(1)], "validation": [sample(2)]})
    report = check(fake, "test")
    assert report.problems == ("Id 's1' stands in test and in train.",)
    assert report.compared == ("train", "validation")


def test_a_split_without_samples_is_a_problem_and_one_that_does_not_exist_an_error():
    assert "no samples" in problems()
    with pytest.raises(DataError):
        check(Fake({}), "test")


def test_the_made_up_episode_looked_at_the_evidence_and_answered():
    made = answered(sample(), "17")
    assert isinstance(made, Episode)
    assert made.answer == "17"
    assert [r.polygon.bounds for r in made.gaze] == [Box(10, 10, 40, 30)]
