"""Serves a model by vLLM's own OpenAI-compatible server: `rlkit serve RUN|MODEL [port=8000] [host=ADDRESS] [name=value ...]`.

The server replaces this process. It listens on 127.0.0.1 and opens no other port; with another `host` it wants a key, which it reads from
the environment: on a command line every user of the machine could read it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from rlkit.assembly.model_files import read_config
from rlkit.cli.model_source import CONFIG, ModelSource, find_source, read_model_settings
from rlkit.cli.words import LOOPBACK, read_port, split_model
from rlkit.config.recipe import Recipe
from rlkit.errors import UserError
from rlkit.profiling import host_estimate, memory_estimate
from rlkit.run import handle_errors
from rlkit.runtime.hardware import count_visible_gpus
from rlkit.runtime.library_settings import configure_libraries

USAGE = "rlkit serve RUN|MODEL [step=N|best] [port=8000] [host=ADDRESS] [name=value ...]"
PORT, KEY = "8000", "VLLM_API_KEY"
OWN = ("step", "port", "host")
OF_RECIPE = ("model.", "offline=")  # words that begin so are keys of a recipe; any other is a setting of vLLM's server
SETTING = re.compile(r"[a-z][a-z0-9_.-]*")
ENVIRONMENT = {
    "VLLM_HOST_IP": LOOPBACK,  # this and the next: what its own processes talk over
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CPU_KVCACHE_SPACE": str(host_estimate.KV_CACHE // memory_estimate.GIB),
}


def run_serve(arguments: list[str]) -> int:
    """Becomes the server. Returns only where it cannot start: the exit code, as rlkit.run."""
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO")
    configure_libraries(offline=False)
    return handle_errors(lambda: become_server(arguments, level), arguments)


def become_server(arguments: list[str], level: str) -> int:
    """As run_serve. Raises UserError."""
    name, words = split_model(arguments, USAGE)
    of_recipe = [word for word in words if word.startswith(OF_RECIPE)]
    settings = dict(word.split("=", 1) for word in words if word not in of_recipe)
    own = {name: settings.pop(name) for name in OWN if name in settings}
    check_settings(settings)
    host, port = own.get("host", LOOPBACK), read_port(own.get("port", PORT))
    check_address(host)
    source = find_source(name, own.get("step"))
    recipe = read_model_settings(source, of_recipe)
    check_free(host, port)
    source.write()
    configure_libraries(offline=recipe.offline)
    path = locate_served(recipe)
    defaults = {"served_model_name": name_model(source, recipe), **build_defaults(recipe)}
    command = build_command(path, {**defaults, **settings}, host, port)
    key = "with the key of VLLM_API_KEY" if os.environ.get(KEY) else "without a key"
    print(f"serving {path} as {settings.get('served_model_name', defaults['served_model_name'])}", flush=True)
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1, {key}; Ctrl-C ends it", flush=True)
    os.execve(command[0], command, {**ENVIRONMENT, **os.environ, "VLLM_LOGGING_LEVEL": level})


def check_settings(settings: Mapping[str, str]) -> None:
    """Raises UserError for a secret on the command line, and for what is no name of a setting."""
    for name in settings:
        if not SETTING.fullmatch(name):
            raise UserError(f"{name} is no setting of vLLM's server, and no key of {USAGE}")
        if name == "key" or "api-key".startswith(name.replace("_", "-")):  # vLLM reads the beginning of a name as the whole of it
            raise UserError(f"{name}=... could be read by every user of this machine (ps); set {KEY} in the environment instead")


def check_address(host: str) -> None:
    """Raises UserError for an address that others can reach, where there is no key."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not os.environ.get(KEY, "").strip():
        raise UserError(
            f"host={host} lets other machines in, and then the server needs a key: set {KEY} in its environment, "
            f"or leave host= out ({LOOPBACK})"
        )


def check_free(host: str, port: int) -> None:
    """Raises UserError where the server cannot listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f"host={host} port={port} cannot be listened on: {error.strerror}; choose another port=") from error


def locate_served(recipe: Recipe) -> str:
    """The folder, or the name of the hub, that vLLM reads. Raises UserError for what it cannot serve."""
    import torch

    from rlkit.assembly.base_model import check_models, find_dtype, locate_model

    folder = Path(recipe.model.path).expanduser()
    if (folder / CONFIG).is_file() and (method := find_quantisation(folder)):
        if not count_visible_gpus():
            raise UserError(
                f"{folder} holds weights quantised by {method}, which are served on a GPU alone; take the model they were made of"
            )
        return str(folder)  # vLLM's own check
    check_models(recipe)
    return locate_model(recipe, find_dtype(recipe, torch.device("cuda" if count_visible_gpus() else "cpu")), main=True).path


def find_quantisation(folder: Path) -> str | None:
    """The method by which the weights of a model are quantised; None where they are not."""
    settings = read_config(folder, str(folder)).get("quantization_config")
    return str(settings.get("quant_method") or "an unknown method") if isinstance(settings, dict) else None


def name_model(source: ModelSource, recipe: Recipe) -> str:
    """What clients call the model: the recipe of its run, or its folder's own name."""
    return recipe.recipe if source.run else Path(source.path).name


def build_defaults(recipe: Recipe) -> dict[str, str]:
    """The settings of the server that the machine and the model ask for; settings of the command line win."""
    defaults = {"max_model_len": "-1"}  # what fits
    if recipe.model.dtype != "auto" or not count_visible_gpus():
        defaults["dtype"] = "float32" if recipe.model.dtype == "auto" else recipe.model.dtype
    if not count_visible_gpus():
        defaults["enforce_eager"] = "true"
    if recipe.model.trust_remote_code:
        defaults["trust_remote_code"] = "true"
    if recipe.model.chat_template_kwargs:
        defaults["default_chat_template_kwargs"] = json.dumps(dict(recipe.model.chat_template_kwargs))
    return defaults


def build_command(path: str, settings: Mapping[str, str], host: str, port: int) -> list[str]:
    """vLLM's server as a command: name=value is --name=value, name=true --name, and name=false --no-name.

    The address comes last, for the last one wins: vLLM reads the beginning of a name, hos=0.0.0.0, as the whole of it.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={path}"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        command.append(f"--no-{flag}" if value == "false" else f"--{flag}" if value == "true" else f"--{flag}={value}")
    return [*command, f"--host={host}", f"--port={port}"]
