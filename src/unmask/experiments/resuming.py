"""Check that a run directory holds one experiment, and continue it as it began."""

from collections.abc import Callable, Collection
from pathlib import Path

from unmask.data.shuffle import Shuffle, choose_shuffle
from unmask.errors import CheckpointError, ConfigError
from unmask.recipes.reading import parse_config
from unmask.recipes.schema import AnyRecipe
from unmask.training.runfolder import list_checkpoints, parse_step, read_meta


def check_steps(before: AnyRecipe, now: AnyRecipe, folder: Path) -> None:
    """Check that a run is not to become shorter.

    Raises:
        CheckpointError: The run has more steps than it is to have now.
    """
    then, steps = before.training.steps, now.training.steps
    if steps < then:
        raise CheckpointError(
            f"{folder} is a run of {then:,} steps and cannot become one of {steps:,}: give --training.steps {then} or "
            "more, or another --out"
        )


def has_finished(root: Path, steps: int) -> bool:
    """Return whether the newest checkpoint is that of the last step."""
    return any(parse_step(path) >= steps for path in list_checkpoints(root)[:1])


def check_checkpoints(
    root: Path, kind: type[AnyRecipe], compare: Callable[[AnyRecipe], list[str]], data: Collection[str], steps: int
) -> None:
    """Check that the checkpoints in a run directory are of its own experiment and data.

    Damaged checkpoints, and those without a recipe, are left to the training, which names them.

    Args:
        root: The folder of the checkpoints.
        kind: The kind of recipe.
        compare: Returns the differences of a recipe to that of the run.
        data: Digests of the data that the run was or is trained on; empty if unknown.
        steps: Number of steps of the run.

    Raises:
        CheckpointError: A checkpoint is of another experiment, or of other data.
    """
    for path in list_checkpoints(root):
        try:
            meta = read_meta(path)
        except CheckpointError:
            continue
        advice = "move it out of this run directory, then run the same command again"
        if "recipe" in meta:
            try:
                theirs = parse_config(meta["recipe"], kind, f"the recipe in {path}")
                changed = compare(theirs)
            except ConfigError as error:
                raise CheckpointError(f"{path} is of another kind of experiment ({error}): {advice}") from error
            if changed:
                raise CheckpointError(f"{path} is of another experiment ({changed[0]}): {advice}")
            if theirs.training.steps > steps:
                raise CheckpointError(f"{path} is of a run of {theirs.training.steps:,} steps, not {steps:,}: {advice}")
        if data and meta.get("data", next(iter(data))) not in data:
            raise CheckpointError(f"{path} was trained on other data: {advice}")


def keep_shuffle(root: Path, num_rows: int) -> Shuffle:
    """Return how a run shuffles its data: as its checkpoints say, and as all early versions did if they do not say."""
    for path in list_checkpoints(root):
        try:
            return read_meta(path).get("shuffle", "sorted")
        except CheckpointError:
            continue
    return choose_shuffle(num_rows)
