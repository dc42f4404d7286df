"""Tools, rewards and tasks of other packages, offered as entry points of a package that is really
installed: a folder on the path with its metadata.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saccade import plugins
from saccade.errors import RecipeError
from saccade.rewards import reward_named
from saccade.tasks import task_named
from saccade.tools import tools_named

CODE = '''
from saccade.geometry import Box
from saccade.images import ImageView
from saccade.rewards import Rubric, answer, reward
from saccade.tools import tool
from saccade.types import Episode, Sample


@tool
def left_half(image: ImageView) -> ImageView:
    """Cut the left half out of an image."""
    return image.crop(Box(0, 0, image.width / 2, image.height))


@reward
def brevity_{mark}(episode: Episode, sample: Sample) -> float:
    """1 for an answer of one word."""
    return float(len((episode.answer or "").split()) == 1)


class Riddles:
    name = "riddles"
    rubric = Rubric(((answer, 1.0),))

    def __init__(self, *, count: int = 3) -> None:
        self.count = count

    def size(self, split):
        return self.count

    def load(self, split, *, store, start=0, count=None):
        raise NotImplementedError

    def gold(self, sample):
        return sample.answer

    def wrong(self, sample):
        return "no"


class Half:
    rubric = Riddles.rubric
    size = Riddles.size
    load = Riddles.load
    gold = Riddles.gold
'''
ENTRIES = """[saccade.tools]
left_half = {module}:left_half
misnamed = {module}:left_half
lost = {module}:nowhere
crop = {module}:left_half
[saccade.rewards]
brevity_{mark} = {module}:brevity_{mark}
[saccade.tasks]
riddles = {module}:Riddles
half = {module}:Half
"""


def install(folder: Path, module: str, mark: str) -> None:
    (folder / f"{module}.py").write_text(CODE.replace("{mark}", mark))
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRIES.format(module=module, mark=mark))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mark in the name of the reward: rewards stay registered as long as the process lives."""
    mark = tmp_path.name.replace("-", "_")
    install(tmp_path, f"extra_{mark}", mark)
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


def test_a_tool_of_another_package_is_found_by_its_name(installed: str) -> None:
    [found] = tools_named(["left_half"])
    assert found.name == "left_half"
    assert list(found.spec.schema["properties"]) == ["image"]
    assert "left_half" in plugins.offered("saccade.tools")


def test_nothing_is_imported_before_it_is_named(installed: str) -> None:
    assert "left_half" in plugins.offered("saccade.tools")
    tools_named(["crop"])
    assert f"extra_{installed}" not in sys.modules


def test_our_names_cannot_be_taken_over(installed: str) -> None:
    [found] = tools_named(["crop"])
    assert found.name == "crop"


def test_a_reward_and_a_task_of_another_package(installed: str) -> None:
    assert reward_named(f"brevity_{installed}").name == f"brevity_{installed}"
    assert task_named("riddles", {"count": 7}).size("train") == 7
    with pytest.raises(RecipeError, match=r"Task riddles has no option 'cuont'.*'count'"):
        task_named("riddles", {"cuont": 7})
    with pytest.raises(RecipeError, match=r"Task half .* lacks name, wrong\."):
        task_named("half", {})


def test_what_cannot_be_used_is_one_sentence(installed: str) -> None:
    with pytest.raises(RecipeError, match=r"offers the tool 'misnamed'.*got 'left_half'"):
        tools_named(["misnamed"])
    with pytest.raises(RecipeError, match=r"'lost' .*can't be loaded"):
        tools_named(["lost"])
    with pytest.raises(RecipeError, match=r"No tool named 'no'\. Available: .*left_half"):
        tools_named(["no"])


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("def tool(: pass", "SyntaxError: .*line 1"),
        ("raise TypeError('no annotation')", "TypeError: no annotation"),
        ("int('x')", "ValueError: invalid literal"),
    ],
)
def test_a_package_that_breaks_while_it_is_imported_is_one_sentence(
    installed: str, tmp_path: Path, code: str, cause: str
) -> None:
    (tmp_path / f"extra_{installed}.py").write_text(code)
    with pytest.raises(RecipeError, match=f"'left_half' .*can't be loaded: {cause}.*\\.$"):
        tools_named(["left_half"])


def test_a_name_that_two_packages_offer_is_refused(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    install(second, f"other_{installed}", f"{installed}_2")
    monkeypatch.syspath_prepend(str(second))
    with pytest.raises(RecipeError, match="offered more than once"):
        tools_named(["left_half"])
