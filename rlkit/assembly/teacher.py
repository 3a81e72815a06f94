"""The teacher of a recipe: where it is, and whether it reads the same tokens as the policy. models.py loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.assembly import plan
from rlkit.assembly.base_model import check_models, print_progress, read_text_config
from rlkit.assembly.model_files import CAUSAL_LM, check_model_folder
from rlkit.builtin.model import ensure_model
from rlkit.config.recipe import Recipe
from rlkit.data.availability import is_hub_reachable, suggest_paths
from rlkit.data.renderer import Renderer
from rlkit.errors import UserError, list_some
from rlkit.runtime.cache import find_cache_folder
from rlkit.runtime.model_path import is_hub_name
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.redaction import redact_message

if TYPE_CHECKING:
    from rlkit.engines.teacher_server import TeacherServer

TEACHER = "model.teacher.path"
PROBES, PROBE_TOKENS = 100, 40  # texts that both tokenizers read, and tokens of each, spread over the whole vocabulary


@dataclass(frozen=True)
class LocatedTeacher:
    """`path`: a folder, or a name of the hub; `server`: what is asked instead; `version`: what identifies a served model."""

    path: str = ""
    server: TeacherServer | None = None
    version: Mapping[str, str] = field(default_factory=dict)


def check_files(recipe: Recipe) -> None:
    """Raises UserError for what files on this disk show of all models; the hub is not asked for one of its names, nor a server."""
    check_models(recipe)
    path = recipe.model.teacher.path
    if path is None or path == "builtin":
        return
    folder = Path(path).expanduser()
    if folder.is_dir():
        config = check_model_folder(folder, f"{TEACHER} {path}", auto_class=CAUSAL_LM, trust_remote_code=recipe.model.trust_remote_code)
        check_context(recipe, f"{TEACHER} {path}", read_text_config(config).get("max_position_embeddings"))
    elif not is_hub_name(path):
        raise UserError(f"{TEACHER} {path} does not exist{suggest_paths(folder, Path.is_dir, 'folder')}")


def open_teacher(recipe: Recipe, renderer: Renderer, ranks: Ranks) -> LocatedTeacher | None:
    """Finds the teacher; None of an algorithm without one. renderer: of the policy.

    Raises UserError, on all ranks, where there is none, or its tokenizer is another.
    """
    teacher = recipe.model.teacher
    if teacher.url:
        return open_server(recipe, renderer, ranks)
    if teacher.path is None:
        return None
    path = teacher.path
    if path == "builtin":
        path = str(ensure_model(find_cache_folder(), print_progress if ranks.main else None))
    check_local_teacher(recipe, renderer, path)
    return LocatedTeacher(path)


def load_teacher_config(recipe: Recipe, path: str) -> Any:
    """Its configuration. Raises UserError."""
    from rlkit.engines.loading import load_config

    return load_config(path, TEACHER, offline=must_be_here(recipe, path), trust_remote_code=recipe.model.trust_remote_code)


def must_be_here(recipe: Recipe, path: str) -> bool:
    """Whether nothing is downloaded."""
    return recipe.offline or not (Path(path).expanduser().is_dir() or is_hub_reachable())


def check_local_teacher(recipe: Recipe, renderer: Renderer, path: str) -> None:
    """Raises UserError where policy and teacher do not know the same tokens, or a sample is too long for the teacher."""
    config = load_teacher_config(recipe, path).get_text_config()  # before the tokenizer, which would be blamed for its faults
    check_context(recipe, f"{TEACHER} {path}", getattr(config, "max_position_embeddings", None))
    if renderer.vocabulary is not None and config.vocab_size < renderer.vocabulary:
        raise UserError(
            f"{TEACHER} {path} knows {config.vocab_size} tokens, and the policy may write {renderer.vocabulary} (vocab_size in "
            "config.json); take a teacher that knows as many"
        )
    compare_tokenizers(renderer, build_teacher_renderer(recipe, path))


def build_teacher_renderer(recipe: Recipe, path: str) -> Renderer:
    return Renderer(path, offline=must_be_here(recipe, path), trust_remote_code=recipe.model.trust_remote_code, what=TEACHER)


def compare_folders(recipe: Recipe, renderer: Renderer) -> None:
    """The tokenizers, of a teacher that lies on this disk. Raises UserError."""
    path = recipe.model.teacher.path
    if path and Path(path).expanduser().is_dir():
        compare_tokenizers(renderer, build_teacher_renderer(recipe, path))


def compare_tokenizers(policy: Renderer, teacher: Renderer) -> None:
    """Raises UserError where a token of the policy is not the same one of the teacher, or texts become other tokens."""
    own, theirs = policy.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    other = sorted((token for token, number in own.items() if theirs.get(token) != number), key=lambda token: own[token])
    if other:
        raise refuse_tokenizer(
            teacher.where, f"{len(other):,} of {len(own):,} tokens of {policy.where} are others there ({list_some([*map(repr, other)])})"
        )
    probes = build_probes(policy)
    check_encodings(teacher.where, policy, probes, [teacher.tokenize(text)[1:] for text in probes])


def open_server(recipe: Recipe, renderer: Renderer, ranks: Ranks) -> LocatedTeacher:
    """One process asks for all."""
    from rlkit.engines.teacher_server import ServedModel, TeacherServer

    teacher = recipe.model.teacher
    shown = redact_message(str(teacher.url))
    server = TeacherServer(str(teacher.url), shown, teacher.api_key)
    refusal: str | None = None
    found: ServedModel | None = None
    if ranks.main:
        try:
            found = server.find_model()
            where, probes = f"model.teacher.url {shown} ({found.name})", build_probes(renderer)
            check_context(recipe, where, found.context and found.context - 1)  # a server writes one token more
            check_encodings(where, renderer, probes, server.tokenize(probes))
        except UserError as error:
            refusal = str(error)
    refusal, found = ranks.gather((refusal, found))[0]
    if refusal:
        raise UserError(refusal)
    assert isinstance(found, ServedModel)
    server.model = found
    return LocatedTeacher(server=server, version={"served": found.name})


def check_context(recipe: Recipe, where: str, context: Any) -> None:
    """Raises UserError where the longest sample does not fit into the teacher's context."""
    longest = plan.longest_sample(recipe)
    if isinstance(context, int) and longest > context:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens = {longest} is more than the {context} tokens that {where} can read; lower one of "
            "them, or take another teacher"
        )


def build_probes(renderer: Renderer) -> list[str]:
    """Texts of tokens over the whole vocabulary, special ones left out; each has two tokens or more."""
    size = len(renderer.tokenizer)
    step = max(1, size // (PROBES * PROBE_TOKENS))
    texts = (renderer.decode([(start + n * PROBES) * step % size for n in range(PROBE_TOKENS)]) for start in range(PROBES))
    return [text for text in dict.fromkeys(texts) if len(renderer.tokenize(text)) > 1]


def check_encodings(where: str, renderer: Renderer, texts: Sequence[str], found: Sequence[Sequence[int]]) -> None:
    """found: the token ids of the texts but the first of each, by the teacher. Raises UserError where they are not the policy's."""
    apart = [text for text, ids in zip(texts, found, strict=True) if renderer.tokenize(text)[1:] != list(ids)]
    if apart:
        raise refuse_tokenizer(where, f"{len(apart)} of {len(texts)} texts become other tokens there, such as {apart[0][:40]!r}")


def refuse_tokenizer(where: str, why: str) -> UserError:
    return UserError(
        f"{where} has another tokenizer than the policy: {why}; its log-probs would be of other tokens, so take a teacher of the "
        "policy's family"
    )
