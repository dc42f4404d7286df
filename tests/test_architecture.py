"""The layers of the package, walked on the syntax tree of every module, imports inside functions
included.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.renderers import families

SOURCE = Path(__file__).parent.parent / "src" / "saccade"
LAYERS = (
    ("errors", "geometry", "distances", "progress", "environment", "daemon_threads", "tags"),
    ("plugins",),
    ("types", "picture_files", "atomic_files"),
    ("images", "ink", "config", "coverage"),
    ("worlds", "vision", "image_store", "recipe_files"),
    ("backends",),
    ("tools", "dialects", "rewards", "run_folder", "episode_json"),
    ("grounding", "grounding_figures"),
    ("renderers", "tasks", "engines"),
    ("engines.api", "engines.scripted"),
    ("observing", "toolserver"),
    ("rollout", "controls", "evaluate", "agreement", "toolcall"),
    ("synth", "synth.replay", "ladder.figures"),
    ("synth.charts",),
    ("tokens",),
    ("models", "losses"),
    ("engines.decoding",),
    ("engines.torch",),
    ("assemble",),
    ("ledger",),
    ("pretrain", "sft", "measure", "sampling", "synth.kept", "synth.chains", "ask", "validation"),
    ("rl", "synth.gold", "attention"),
    ("benches", "ladder"),
    ("view",),
    ("report",),
    ("ladder.page",),
    ("demo",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH_FROM = LEVEL["tokens"]
WITH_MODELS = {
    "backends.grounding_dino",
    "backends.models_known",
    "backends.pointing_vlm",
    "backends.sam",
}
"""May import torch where a model is loaded, and not before."""
LEAVES = {"view", "report", "ladder.page"}
LEAVES_MAY_IMPORT = {
    "types",
    "geometry",
    "errors",
    "image_store",
    "run_folder",
    "episode_json",
    "atomic_files",
    "coverage",
    "view",
    "report",
    "ladder.page",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        found[name] = path
    return found


def unit(name: str) -> str:
    """The part of the package that a module belongs to: the longest name with a level."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        if (short := ".".join(parts[:size])) in LEVEL:
            return short
    return name


def imports(path: Path, *, at_top: bool = False) -> set[str]:
    """Every imported module, at any depth of the file or at its top alone, type-checking blocks
    excepted.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if at_top:
        tree.body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            base = node.module or ""
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def internal(path: Path) -> set[str]:
    known = modules()
    names = {n.removeprefix("saccade.") for n in imports(path) if n.startswith("saccade.")}
    return {n for n in names if n in known}


@pytest.mark.parametrize("name", sorted(n for n in modules() if n))
def test_a_module_imports_only_from_layers_below_its_own(name: str) -> None:
    if name in ("recipes", "weights"):
        return
    here = unit(name)
    assert here in LEVEL, f"{name} has no layer: add it to LAYERS"
    for other in internal(modules()[name]):
        there = unit(other)
        assert there == here or LEVEL[there] < LEVEL[here], (
            f"{name} imports {other}, which is not below it"
        )


@pytest.mark.parametrize("name", sorted(n for n in modules() if n))
def test_no_module_below_the_token_layer_imports_torch(name: str) -> None:
    here = unit(name)
    if here in LEVEL and (LEVEL[here] < TORCH_FROM or here in LEAVES):
        imported = imports(modules()[name], at_top=name in WITH_MODELS)
        heavy = {i.split(".")[0] for i in imported} & {"torch", "transformers"}
        assert not heavy, f"{name} imports {heavy}"


@pytest.mark.parametrize("name", sorted(n for n in modules() if unit(n) in LEAVES))
def test_leaves_read_types_and_the_run_folder_only(name: str) -> None:
    assert {unit(i) for i in internal(modules()[name])} <= LEAVES_MAY_IMPORT


def test_the_walker_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("def f():\n    from saccade.rl import run\n    import torch.nn\n")
    assert {"saccade.rl", "saccade.rl.run", "torch.nn"} <= imports(file)
    assert imports(file, at_top=True) == set()


def test_every_module_is_imported_by_another_or_is_a_command() -> None:
    used = {i for path in modules().values() for i in internal(path)}
    alone = {n for n in modules() if n and n not in used} - {"cli"}
    alone -= {kind.__module__.removeprefix("saccade.") for kind in families().values()}
    packages = {
        "recipes",
        "synth",
        "weights",
        "worlds",
        "renderers",
        "models",
        "engines.decoding",
        "benches",
        "vision",
        "toolserver",
        "ladder",
        "ladder.figures",
        "ladder.page",
    }
    assert alone - packages == set()


def test_importing_saccade_is_fast_and_brings_no_torch() -> None:
    code = (
        "import time; t = time.perf_counter(); import saccade; "
        "s = time.perf_counter() - t; import sys; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; print(s)"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(runs) < 0.3


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, saccade.cli; "
        "assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(n for n in modules() if n))
def test_all_is_sorted_and_names_what_exists(name: str) -> None:
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    if not listed:
        return
    [names] = listed
    defined = {
        t.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for t in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(t, ast.Name)
    }
    defined |= {
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    defined |= {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    assert set(names) <= defined
    assert sorted(set(names), key=_as_ruff_sorts) == names


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return (kind, name)
