"""The command line: each command parses, calls one function and prints one table.

Invariant: what is the user's to mend is one sentence on the error stream and exit code 1; a
traceback is a bug. Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer.core import TyperGroup

from saccade.errors import RecipeError, SaccadeError

if TYPE_CHECKING:
    from saccade.config import BackendChoice, BackendKind, Recipe
    from saccade.tasks import Task
    from saccade.tasks.hacks import Hacked
    from saccade.types import Episode

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """What is the user's to mend is said in one sentence, wherever the command was started from."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SaccadeError as error:
            typer.echo(f"saccade: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:  # here and not in `main`: typer would end without a word
            typer.echo("saccade: stopped; the same command goes on.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Teach vision-language models to think with images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve_app = typer.Typer(help="Offer the tools to other programs.", no_args_is_help=True)
app.add_typer(serve_app, name="serve")
tools_app = typer.Typer(help="List and call the vision tools.", no_args_is_help=True)
app.add_typer(tools_app, name="tools")
bench_app = typer.Typer(help="Measure speed, as ratios within one run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

RecipeArgument = Annotated[
    str, typer.Argument(help="Recipe file, or the name of one that comes with saccade.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, like rl.group_size=4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def main() -> None:
    """Entry point of the `saccade` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # text in any script passes, whatever the terminal's encoding is
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    app()


@app.command()
def demo(
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option(help="Recipe of the demo.")] = "charts-tiny",
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
) -> None:
    """A small ladder on this machine: base, cold start, RL with and without looking; the report."""
    from saccade import demo as stages

    made = _in_folder(_recipe(recipe, overrides, run=run), "runs/demo")
    results = stages.run(made)
    episode, gaze = stages.ask_one(made)
    _print_episode(episode)
    typer.echo(f"Gaze: {gaze}")
    _print_ladder(made, results)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    model: Annotated[str, typer.Option(help="Model folder or built-in name.")] = "saccade-tiny",
    recipe: Annotated[str, typer.Option(help="Recipe for tools and budgets.")] = "charts-tiny",
    out: Annotated[Path, typer.Option(help="Where the picture of the gaze goes.")] = Path(
        "gaze.png"
    ),
    as_json: AsJson = False,
) -> None:
    """Ask one question about one picture; prints thoughts, calls and answer, draws the gaze."""
    from saccade.ask import TINY_KNOWS
    from saccade.ask import ask as asked
    from saccade.episode_json import episode_to_json
    from saccade.view import gaze_picture

    made = _recipe(recipe, None).model_copy(update={"model": model})
    episode, store = asked(made, image, question)
    if as_json:
        typer.echo(json.dumps(episode_to_json(episode), ensure_ascii=False))
    else:
        _print_episode(episode)
    _save_picture(gaze_picture(episode, store), out)  # last: what was answered is said in any case
    if not as_json:
        typer.echo(f"Gaze: {out}")
        if model == "saccade-tiny":
            typer.echo(TINY_KNOWS, err=True)


@app.command()
def pretrain(
    recipe: RecipeArgument = "tiny-base",
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
) -> None:
    """Train the tiny base model from nothing; goes on where it was stopped."""
    from saccade import pretrain as stage

    typer.echo(stage.run(_recipe(recipe, overrides, run=run)))


@app.command()
def sft(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
) -> None:
    """Cold start on demonstrations; goes on where it was stopped."""
    from saccade import sft as stage

    typer.echo(stage.run(_recipe(recipe, overrides, run=run)))


@app.command()
def rl(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
) -> None:
    """V-ToolRL; goes on where it was stopped."""
    from saccade import rl as stage

    typer.echo(stage.run(_recipe(recipe, overrides, run=run)))


@app.command("eval")
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    arm: Annotated[str, typer.Option(help="Name of the model in tables.")] = "model",
    control: Annotated[
        str | None,
        typer.Option(help="Ask again with other boxes or pixels; the same as eval.control."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on a split; goes on where it was stopped."""
    from saccade import measure
    from saccade.evaluate import results_json

    if control is not None:
        overrides = [*(overrides or ()), f"eval.control={control}"]
    results = results_json({arm: measure.run(_recipe(recipe, overrides, run=run), arm=arm)}, ())
    if as_json:
        typer.echo(json.dumps(results))
    else:
        _print_results(results)


@app.command()
def attention(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """How much a model looks at the picture while it thinks again, with and without its boxes."""
    from rich.console import Console

    from saccade import attention as looks

    found = looks.run(_recipe(recipe, overrides, run=run))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        Console().print(looks.format_attention(found))


@app.command()
def ladder(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train and measure all arms of a recipe, with controls; goes on where it was stopped."""
    from saccade.ladder import runs as rungs

    made = _in_folder(_recipe(recipe, overrides, run=run), "runs/ladder")
    results = rungs.run(made)
    if as_json:
        typer.echo(json.dumps(results))
    else:
        _print_ladder(made, results)


@app.command()
def rollout(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "validation",
    count: Annotated[int, typer.Option(min=1, help="Samples.")] = 4,
    run: Annotated[Path | None, typer.Option(help="Keep the episodes in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Roll out a few episodes and show them."""
    from saccade.episode_json import episode_to_json
    from saccade.sampling import sample_episodes

    for episode in sample_episodes(_recipe(recipe, overrides, run=run), split, count=count):
        if as_json:
            typer.echo(json.dumps(episode_to_json(episode), ensure_ascii=False))
        else:
            _print_episode(episode)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    episodes: Annotated[int, typer.Option(min=0, help="Episodes shown whole.")] = 12,
) -> None:
    """Write report.html of a run."""
    from saccade.ladder.page.report import write_ladder_report
    from saccade.report import write_report

    is_ladder = (run / "ladder.json").is_file()
    typer.echo(write_ladder_report(run) if is_ladder else write_report(run, episodes=episodes))


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSON file of answer or box vectors.")],
    as_json: AsJson = False,
) -> None:
    """Agreement of our scoring rules with a file of vectors."""
    from rich.console import Console
    from rich.table import Table

    from saccade.agreement import score_file

    found = score_file(file)
    if as_json:
        rows = [{"rule": r.rule, "n": r.n, "agree": r.agree} for r in found]
        typer.echo(json.dumps(rows))
        return
    table = Table("rule", "n", "agree", "differ")
    for r in found:
        table.add_row(r.rule, str(r.n), str(r.agree), ", ".join(d.id for d in r.disagreements))
    Console().print(table)


@app.command()
def check(
    tasks: Annotated[list[str], typer.Argument(help="Names of tasks, or recipes with them.")],
    split: Annotated[str, typer.Option(help="Split of the tasks.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 200,
    path: Annotated[Path | None, typer.Option(help="Data file of the task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run gold and wrong answers of tasks through their rubrics, and strings that break rewards."""

    from saccade.tasks.check import check as checked

    found = [checked(_task(task, path), split, count=count) for task in tasks]
    if as_json:
        rows = [{**dataclasses.asdict(f), "ok": f.ok} for f in found]
        typer.echo(json.dumps(rows[0] if len(rows) == 1 else rows))
    for report in [] if as_json else found:
        typer.echo(
            f"{report.task}/{report.split}: {report.samples} samples, "
            f"gold accuracy {report.gold_accuracy:.3f}, wrong accuracy {report.wrong_accuracy:.3f}"
        )
        for problem in report.problems:
            typer.echo(f"- {problem}")
        if report.hacks:
            _show_hacks(report.hacks)
    if not all(f.ok for f in found):
        raise SystemExit(1)


def _show_hacks(hacks: Sequence[Hacked]) -> None:
    """What each string earns, mean over the samples and most of any."""
    from rich.console import Console
    from rich.table import Table

    table = Table("written", "answer", *(f"{mode}: mean, most" for mode in hacks[0].earned))
    for row in hacks:
        cells = (f"{row.earned[m]:.2f}, {row.most[m]:.2f}" for m in row.earned)
        table.add_row(row.name, "right" if row.is_right else "wrong", *cells)
    Console().print(table)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    count: Annotated[int, typer.Option(min=1, help="Demonstrations.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of qualities and places.")] = 0,
    dialect: Annotated[str, typer.Option(help="How turns are written.")] = "pointing",
    tools: Annotated[str, typer.Option(help="With commas; each must take a box.")] = "look",
) -> None:
    """Write demonstrations for charts, by an oracle that is good in most cases and bad in some."""
    from saccade.dialects import dialect as dialect_named
    from saccade.synth.charts import demonstrations
    from saccade.synth.replay import write_demonstrations
    from saccade.tools import tools_described

    if dialect == "plain":
        raise RecipeError("The dialect plain can't write a look; demonstrations need another one.")
    names = tools.split(",")
    for tool in tools_described(names):
        if "box" not in tool.spec.schema["properties"]:
            raise RecipeError(f"{tool.name} takes no box, and the oracle can say nothing else.")
    words = dialect_named(dialect, tools=names)
    write_demonstrations(out, demonstrations(count, seed=seed, dialect=words, tools=names))
    typer.echo(out)


@app.command("synth-chains")
def synth_chains(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Samples to ask about.")] = 1600,
    start: Annotated[int, typer.Option(min=0, help="The first of them.")] = 1_000_000,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "train",
    tries: Annotated[int, typer.Option(min=1, help="Times that a sample is asked about.")] = 1,
) -> None:
    """Write demonstrations of reasoning with boxes that a base model makes itself."""
    from saccade.synth.chains import self_made
    from saccade.synth.replay import write_demonstrations

    made = self_made(_recipe(recipe, overrides), split=split, start=start, count=count, tries=tries)
    if not made.demonstrations:
        raise RecipeError(f"No chain of {made.asked} led to a right answer; nothing was written.")
    write_demonstrations(out, made.demonstrations)
    typer.echo(f"{out}: {len(made.demonstrations)} of {made.asked}")


@tools_app.command("list")
def tools_list(as_json: AsJson = False) -> None:
    """The tools with their arguments, and the back ends that do their looking."""
    from rich.console import Console
    from rich.table import Column, Table

    from saccade.backends import listed
    from saccade.tools import builtin_tools

    tools = builtin_tools().values()
    if as_json:
        rows = [
            {
                "name": t.name,
                "description": t.spec.description,
                "schema": t.spec.schema,
                "aliases": t.aliases,
                "needs": [kind for _, kind in t.needs],
            }
            for t in tools
        ]
        backends = [b._asdict() for b in listed()]
        typer.echo(json.dumps({"tools": rows, "backends": backends}))
        return
    table = Table(Column("tool", no_wrap=True), "arguments", "what it does", "needs")
    for t in tools:
        needs = ", ".join(kind for _, kind in t.needs)
        table.add_row(t.name, ", ".join(t.spec.schema["properties"]), t.spec.description, needs)
    Console().print(table)
    table = Table("back end", "kind", "needs", "here")
    for b in listed():
        missing = "no: " + ", ".join(b.missing) if b.missing else "yes"
        table.add_row(b.name, b.kind + (", default" if b.is_default else ""), b.needs, missing)
    Console().print(table)


@tools_app.command("call")
def tools_call(
    name: Annotated[str, typer.Argument(help="Tool.")],
    arguments: Annotated[str, typer.Argument(help='JSON, like {"box": [10, 10, 90, 60]}.')],
    image: Annotated[Path | None, typer.Option(help="Picture file, named img_0.")] = None,
    out: Annotated[Path, typer.Option(help="Where a returned picture goes.")] = Path("out.png"),
) -> None:
    """Call one tool on one picture, coordinates in pixels."""
    from saccade.toolcall import call

    for part in call(name, arguments, image=image, out=out):
        typer.echo(part)


@tools_app.command("fetch")
def tools_fetch(
    model: Annotated[
        str | None, typer.Argument(help="OWNER/NAME or OWNER/NAME@COMMIT; none: those known.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="Folder; default: the hub's cache.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model for a back end, or tell which are known, how large, under which licence."""
    from saccade.backends.models_known import KNOWN, fetch

    if model is not None:
        folder = fetch(model, into)
        typer.echo(json.dumps({"folder": str(folder)}) if as_json else f"{model} lies in {folder}")
        return
    if as_json:
        typer.echo(json.dumps([k._asdict() for k in KNOWN]))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("back end", Column("model", overflow="fold"), "size", "licence", "commit")
    for k in KNOWN:
        commit = k.revision[:12] if k.revision else "newest"
        table.add_row(k.backend, k.model, f"{k.size_mb} MB", k.licence, commit)
    Console().print(table)


@tools_app.command("status")
def tools_status(
    url: Annotated[str, typer.Argument(help="Address of a service.")] = "http://127.0.0.1:8300",
    as_json: AsJson = False,
) -> None:
    """What became of the calls of a running service, and how its workers are."""
    from rich.console import Console

    from saccade.toolserver.status import status, tables

    found = status(url)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for table in tables(found):
        Console().print(table)


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535)]
ServedRecipe = Annotated[
    str | None, typer.Option(help="Recipe with tools, back ends and how they run.")
]
ServedTools = Annotated[str | None, typer.Option(help="Tools, with commas; default: all.")]


def _served(recipe: str | None, tools: str | None, overrides: list[str] | None) -> Recipe:
    """A recipe with the tools that are to be served: those named, its own, or all there are."""
    from saccade.recipe_files import changed, load_recipe
    from saccade.tools import builtin_tools

    ours = ["service.way=workers"]  # so that a busy tool keeps nobody from being answered
    made = (
        load_recipe(None, [*ours, *(overrides or ())])
        if recipe is None
        else _recipe(recipe, overrides)
    )
    if tools is None and recipe is not None:
        return made
    every = [t.name for t in builtin_tools().values() if not t.is_answer]
    return changed(made, {"tools": [*(tools.split(",") if tools else every)]})


@serve_app.command("tools")
def serve_tools(
    recipe: ServedRecipe = None,
    overrides: Overrides = None,
    tools: ServedTools = None,
    host: Host = "127.0.0.1",
    port: Port = 8300,
) -> None:
    """Serve tools over HTTP, for `service.way: remote` and for other programs."""
    from saccade.toolserver import serving

    serving.serve_tools(_served(recipe, tools, overrides), host=host, port=port, say=_say)


@serve_app.command("mcp")
def serve_mcp(
    recipe: ServedRecipe = None,
    overrides: Overrides = None,
    tools: ServedTools = None,
    stdio: Annotated[bool, typer.Option(help="Speak on the standard streams.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8301,
) -> None:
    """Serve tools to clients of the Model Context Protocol."""
    from saccade.toolserver import serving

    made = _served(recipe, tools, overrides)
    serving.serve_mcp(made, stdio=stdio, host=host, port=port, say=_say)


def _say(line: str) -> None:
    typer.echo(line, err=True)


@bench_app.command("engine")
def bench_engine(as_json: AsJson = False) -> None:
    """Work of the torch engine over the least work that would do."""
    from saccade.benches.engine import bench_engine as bench

    found = bench(show=not as_json)
    if as_json:
        typer.echo(json.dumps(found))


@bench_app.command("found")
def bench_found(
    what: Annotated[str | None, typer.Argument(help="With commas; default: everything.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Figures of each variety.")] = 300,
    varieties: Annotated[str | None, typer.Option(help="With commas; default: all.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="As kind=name or kind=name:model; may be repeated.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was judged, to go on after a kill.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What tools find in figures and charts, against what is there."""
    from saccade.benches.found import SOURCES
    from saccade.benches.found import bench_found as bench
    from saccade.benches.judges import JUDGES

    found = bench(
        count=count,
        what=list(JUDGES) if what is None else what.split(","),
        varieties=list(SOURCES) if varieties is None else varieties.split(","),
        backends=_backends(backend or ()),
        run=run,
        show=not as_json,
    )
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in found]))


def _backends(told: Sequence[str]) -> dict[BackendKind, BackendChoice]:
    """Back ends by kind, from what was typed."""
    from saccade.config import BackendChoice, BackendKind

    chosen: dict[BackendKind, BackendChoice] = {}
    for one in told:
        kind, _, rest = one.partition("=")
        name, _, model = rest.partition(":")
        of_kind = next((k for k in get_args(BackendKind) if k == kind), None)
        if of_kind is None or not name:
            kinds = ", ".join(get_args(BackendKind))
            raise RecipeError(f"{one!r} names no back end: say kind=name, with one of {kinds}.")
        chosen[of_kind] = BackendChoice(name=name, model=model or None)
    return chosen


@bench_app.command("tools")
def bench_tools(
    calls: Annotated[int, typer.Option(min=10, help="Of each row.")] = 1_000,
    as_json: AsJson = False,
) -> None:
    """Ways to run tools, side by side: what a call costs beyond its operation."""
    from saccade.benches.tools import bench_tools as bench

    rows = bench(calls=calls, show=not as_json)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]))


@bench_app.command("chaos")
def bench_chaos(
    episodes: Annotated[int, typer.Option(min=1, help="Of each run.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Of the trouble.")] = 0,
    way: Annotated[str, typer.Option(help="workers or ray.")] = "workers",
    as_json: AsJson = False,
) -> None:
    """Episodes whose tool workers are killed, stopped, slowed and starved: what became of them."""
    from saccade.benches.chaos import bench_chaos as bench

    if way not in ("workers", "ray"):
        raise RecipeError(f"Chaos is for the ways workers and ray, got {way!r}.")
    found = bench(
        episodes=episodes,
        seed=seed,
        way="ray" if way == "ray" else "workers",
        show=not as_json,
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))


@bench_app.command("rl")
def bench_rl(
    against: Annotated[Literal["trl", "none"], typer.Option(help="Compared with.")] = "trl",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before them.")] = 2,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of a step.")] = 16,
    group: Annotated[int, typer.Option(min=2, help="Episodes of each prompt.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    tool_style: Annotated[
        Literal["schema", "signature", "silent"], typer.Option(help="How prompts tell of tools.")
    ] = "schema",
    tools: Annotated[
        Literal["one", "all"], typer.Option(help="Tools that prompts tell of.")
    ] = "one",
    image_tokens: Annotated[int, typer.Option(min=4, help="Budget of a picture.")] = 256,
    freeze_vision: Annotated[bool, typer.Option(help="Train no vision tower.")] = False,
    micro_batch: Annotated[int, typer.Option(min=1, help="Episodes in a pass of TRL.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Whole steps of RL: ours, TRL's, and the matrix products that no step can do without."""
    from saccade.benches.rl import bench_rl as bench
    from saccade.tools import builtin_tools

    found = bench(
        against,
        steps=steps,
        warmup=warmup,
        prompts=prompts,
        group=group,
        threads=threads,
        tool_style=tool_style,
        tools=tuple(t.name for t in builtin_tools().values() if not t.needs)
        if tools == "all"
        else (),
        image_tokens=image_tokens,
        freeze_vision=freeze_vision,
        micro_batch=micro_batch,
        show=not as_json,
    )
    if as_json:
        typer.echo(json.dumps(found))


def _recipe(name: str, overrides: list[str] | None, *, run: Path | None = None) -> Recipe:
    from saccade.recipe_files import load_recipe

    recipe = load_recipe(recipe_path(name), overrides or [])
    return recipe if run is None else recipe.model_copy(update={"run": run})


def _in_folder(recipe: Recipe, default: str) -> Recipe:
    """The recipe with a run folder: its own, where it or a change to it names one."""
    return recipe.model_copy(update={"run": recipe.run or Path(default)})


def _task(name: str, path: Path | None) -> Task:
    """A task by its name and data file, or the one of a recipe, with all that it sets."""
    from saccade.tasks import TASKS, task_named

    if path is None and name not in TASKS and (Path(name).is_file() or name in _built_in()):
        from saccade.assemble import task_of

        return task_of(_recipe(name, None))
    return task_named(name, {} if path is None else {"path": path})


def recipe_path(name: str) -> Path:
    """A recipe file by path, or one that comes with saccade: by its name, or as recipes/NAME.yaml
    from anywhere.
    """
    path, built_in = Path(name), _built_in()
    if path.is_file():
        return path
    if path.parent.name == "recipes" and path.suffix == ".yaml":
        name = path.stem
    if name not in built_in:
        known = ", ".join(sorted(built_in))
        raise RecipeError(f"No recipe {name!r}: there is no such file, and built in are {known}.")
    return built_in[name]


def _built_in() -> dict[str, Path]:
    """The recipes that come with saccade, by name."""
    from importlib import resources

    folder = Path(str(resources.files("saccade.recipes")))
    return {path.stem: path for path in folder.glob("*.yaml")}


def _print_ladder(recipe: Recipe, results: dict[str, Any]) -> None:
    from rich.console import Console

    from saccade.ladder.page.report import format_ladder, write_ladder_report

    assert recipe.run is not None
    page = write_ladder_report(recipe.run)
    Console().print(format_ladder(results))
    typer.echo(f"Report: {page}")


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console

    from saccade.evaluate import format_table

    Console().print(format_table(results))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _print_episode(episode: Episode) -> None:
    from saccade.types import BadCall

    typer.echo(f"Question: {episode.sample.question}")
    for number, turn in enumerate(episode.turns):
        if turn.parsed.thought:
            typer.echo(f"[{number}] {turn.parsed.thought}")
        for result in turn.results:
            call = result.call
            said = call.raw if isinstance(call, BadCall) else f"{call.name} {_json(call.arguments)}"
            typer.echo(f"[{number}] -> {said}{' (failed)' if result.failed else ''}")
    stop = episode.stop.value if episode.stop else "running"
    typer.echo(f"Answer: {episode.answer}" if episode.answer is not None else f"No answer: {stop}")


def _save_picture(picture: Any, out: Path) -> None:
    from saccade.errors import StorageError

    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise StorageError(f"The picture can't be written to {out}: {error}.") from None


if __name__ == "__main__":
    main()
