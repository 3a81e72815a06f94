"""Writes the model of a checkpoint: `rlkit export RUN [as=merged|adapter] [step=N|best] [to=FOLDER]`.

RUN is the folder of a run, finished or not. Without `step` the newest checkpoint is used; step=best is the one of the best evaluation,
which checkpoint.best=true keeps. as=merged is a Hugging Face folder with adapters merged, as=adapter a peft folder of the LoRA adapters
alone; without it the form is that of the run, checkpoint.export. One process loads the base model on the CPU, no matter how many
processes trained it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rlkit.cli.audit import append_command
from rlkit.errors import EXIT_DONE, UserError
from rlkit.report.audit import seal_folder
from rlkit.report.model_card import MODEL_CARD, build_model_card
from rlkit.report.signing import load_signer
from rlkit.run import handle_errors
from rlkit.runtime.checkpoint import CHECKPOINTS, Checkpoints, build_read_error, publish
from rlkit.runtime.library_settings import configure_libraries
from rlkit.trainers.selection import Evaluations, describe_best, load_evaluations

if TYPE_CHECKING:
    import torch

    from rlkit.config.recipe import Recipe

USAGE = "rlkit export RUN [as=merged|adapter] [step=N|best] [to=FOLDER]"
FORMS = ("merged", "adapter")
WEIGHT = "weight/model."  # prefix of the parameter names in the files of a checkpoint


def run_export(arguments: list[str]) -> int:
    """Write the model. Returns the exit code, as rlkit.run."""
    configure_libraries(offline=False)
    return handle_errors(lambda: parse_and_export(arguments), arguments)


def parse_and_export(arguments: list[str]) -> int:
    """As run_export. Raises UserError."""
    if not arguments:
        raise UserError(f"name the folder of a run: {USAGE}")
    run, *rest = arguments
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    if len(options) < len(rest) or options.keys() - {"as", "step", "to"}:
        raise UserError(f"unknown: {' '.join(rest)}; valid: {USAGE}")
    written = export_model(Path(run), form=options.get("as"), step=options.get("step"), to=options.get("to"))
    what = "the adapter" if options.get("as") == "adapter" else "the model"
    print(f"{written.folder}: {what} after step {written.step}{written.selected}")
    return EXIT_DONE


@dataclass(frozen=True)
class ExportedModel:
    """A folder with the model after a step. `selected`: for step=best, by what it was selected."""

    folder: Path
    step: int
    selected: str = ""


def export_model(run: str | Path, *, form: str | None = None, step: int | str | None = None, to: str | Path | None = None) -> ExportedModel:
    """Write the model of a checkpoint. form: one of FORMS; step: a number or "best"; to: the folder. None as for the command.

    Raises UserError.
    """
    run = Path(run).expanduser().absolute()
    recipe, on_gpu = read_run(run)
    adapter = is_adapter(recipe, run, form)
    checkpoints = open_checkpoints(run)
    number = choose_step(checkpoints, None if step is None else str(step))
    final = Path(to or run / f"{'adapter' if form == 'adapter' else 'model'}-{number:06d}").expanduser().absolute()
    if final.exists():
        raise UserError(f"{final} exists already; delete it, or choose another folder with to=")
    within = final.is_relative_to(run)
    sign = load_signer(recipe.report.audit_key, run) if within else None
    checkpoints.check(number)
    configure_libraries(offline=recipe.offline)
    unfinished = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write_model(recipe, run, checkpoints.get_folder(number), unfinished, on_gpu, adapter)
        (unfinished / MODEL_CARD).write_text(build_model_card(run, number))
        publish(unfinished, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{final} cannot be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if within:
        append_command(run, "exported", {"step": number}, seal_folder(run, final), sign)
    return ExportedModel(final, number, describe_selected(checkpoints, recipe, step))


def open_checkpoints(run: Path) -> Checkpoints:
    """The checkpoints of a run, to be read."""
    return Checkpoints(run / CHECKPOINTS, every=0, keep=0, main=True, gather=lambda item: [item])


def is_adapter(recipe: Recipe, run: Path, form: str | None) -> bool:
    """Whether the adapters are written alone. Raises UserError for a form that is unknown, or that the run does not have."""
    if form not in (None, *FORMS):
        raise UserError(f"as={form} is not valid: it must be {' or '.join(FORMS)}")
    if form == "adapter" and recipe.model.lora.rank is None:
        raise UserError(f"as=adapter: {run} trained all weights (model.lora.rank is null), so it has no adapter; leave as= out")
    return form == "adapter" or (form is None and recipe.checkpoint.export == "adapter")


def read_run(folder: Path) -> tuple[Recipe, bool]:
    """The recipe of a run, and whether it had a GPU, which decides on model.dtype=auto. Raises UserError where there is no run."""
    import yaml

    from rlkit.config import recipe as recipes

    try:
        config = yaml.safe_load((folder / "recipe.yaml").read_text())
        gpus = json.loads((folder / "environment.json").read_text())["hardware"]["gpus"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} is not the folder of a run: {type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder} is not the folder of a run: its recipe.yaml is empty")
    return recipes.read_recipe(config), bool(gpus)


def describe_selected(checkpoints: Checkpoints, recipe: Recipe, word: int | str | None) -> str:
    """Behind the step that step=best chose: by what it was selected."""
    if word != "best":
        return ""
    evaluations = read_evaluations(checkpoints, checkpoints.list_steps()[-1])
    assert evaluations.best is not None
    return f", held-out {recipe.eval.select or recipe.selectable[0]} {evaluations.best.value:.3f} ({describe_best(evaluations)})"


def choose_step(checkpoints: Checkpoints, word: str | None) -> int:
    """The step of the checkpoint that `word` names: the newest for None. Raises UserError, with the known steps, where there is none."""
    steps = checkpoints.list_steps()
    if not steps:
        raise UserError(f"{checkpoints.folder} has no checkpoint yet")
    there = f"there are: {', '.join(map(str, steps))}"
    if word is None:
        return steps[-1]
    if word == "best":
        best = read_evaluations(checkpoints, steps[-1]).best
        if best is None:
            raise UserError(f"no evaluation was done yet, so no checkpoint is the best ({there})")
        if best.step in steps:
            return best.step
        if best.step == 0:
            raise UserError(f"the best evaluation was before the first step, of model.path itself ({there})")
        raise UserError(
            f"the best evaluation was after step {best.step}, but its checkpoint was not kept; checkpoint.best=true keeps it ({there})"
        )
    if not word.isdigit() or int(word) not in steps:
        raise UserError(f"step={word}: there is no such checkpoint ({there}; or step=best)")
    return int(word)


def read_evaluations(checkpoints: Checkpoints, step: int) -> Evaluations:
    """Those of a run up to a checkpoint."""
    return load_evaluations(checkpoints.read_state(step)["evaluations"])


def write_model(recipe: Recipe, run: Path, checkpoint: Path, folder: Path, on_gpu: bool, adapter: bool) -> None:
    """Write the model of a checkpoint of a run, or its adapters alone, with its tokenizer, to a folder.

    Raises UserError where model.path is another model now, or where peft could not read such adapters.
    """
    import torch

    from rlkit.assembly.base_model import build_lora, build_renderer, find_dtype, locate_model
    from rlkit.assembly.model_record import MODEL, check_record, identify_model
    from rlkit.engines.loading import load_causal_lm, load_classifier
    from rlkit.engines.trained_model import TrainedModel
    from rlkit.engines.weight_sync import convert

    dtype = find_dtype(recipe, torch.device("cuda" if on_gpu else "cpu"))
    model_now = locate_model(recipe, dtype, main=True)
    path = model_now.path
    code = {"offline": recipe.offline, "trust_remote_code": recipe.model.trust_remote_code}
    renderer = build_renderer(recipe, path)
    check_record(run, {MODEL: identify_model(recipe, model_now)}, "put this back: a checkpoint holds only what was trained")
    if recipe.offline_algorithm and recipe.algorithm.learner == "reward_model":
        model = load_classifier(path, dtype, renderer.pad_id, **code)
        load_weights(model, checkpoint / "reward_model.safetensors", dtype)
        model.save_pretrained(folder)
    else:
        model = load_causal_lm(path, dtype, "model.path", four_bits=recipe.model.load_in_4bit, **code)
        trained = TrainedModel(model, path, dtype, build_lora(recipe))
        if adapter and trained.adapters:
            trained.adapters.check_files()
        load_weights(model, checkpoint / "policy.safetensors", dtype)
        names, build = trained.adapter_parts() if adapter else trained.checkpoint_parts()
        with torch.no_grad():
            tied = trained.find_tied()
            tensors = {name: convert(build(name), dtype, copy=False) for name in names if name not in tied}
            trained.write(folder, tensors, adapter)
    renderer.save(folder)


def load_weights(model: Any, file: Path, dtype: torch.dtype) -> None:
    """Load the trained tensors of a checkpoint. Raises RunFailed where the file cannot be read, UserError where it is of another model."""
    from safetensors import safe_open

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        with safe_open(file, framework="pt") as stored:
            names = {key.removeprefix(WEIGHT) for key in stored.keys() if key.startswith(WEIGHT)}  # noqa: SIM118  not a mapping
            for name in sorted(names ^ trained.keys()):
                raise UserError(f"{file} is not a checkpoint of the model at model.path: only one of them has {name}")
            for name, parameter in trained.items():
                tensor = stored.get_tensor(WEIGHT + name)
                if tensor.shape != parameter.shape:
                    raise UserError(f"{file} is not a checkpoint of the model at model.path: there {name} is {[*tensor.shape]}")
                parameter.data = tensor.to(dtype)
    except (OSError, SafetensorError) as error:
        raise build_read_error(file, error) from error
