"""The scripts and files of launch/, as far as a machine without Slurm, Docker and Kubernetes can try them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch.spec import parse_launch
from rlkit.config.sections import LaunchSection
from tests.conftest import ROOT, environment

LAUNCH = ROOT / "launch"

# -- Slurm -------------------------------------------------------------------------------------------------------------------------

SRUN = """\
#!/bin/bash
# Two tasks on each of two nodes, as srun would start them.
while [[ $1 == --* ]]; do shift; done
code=0
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NTASKS=4 SLURM_STEP_TASKS_PER_NODE='2(x2)' "$@" || code=$?
done
exit "$code"
"""
SCONTROL = """\
#!/bin/bash
if [[ $1 == requeue ]]; then echo "requeue $2" >>"$CALLS"; else printf '%s\\n' node-07 node-08; fi
"""
TOLD = 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >>"$CALLS"; exit "${RC:-0}"'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A PATH with a srun, a scontrol and a python that write down what they are asked."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": f"#!/bin/bash\n{TOLD}\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_NODELIST": "node-[07-08]", "SLURM_JOB_ID": "41007", "CALLS": str(tmp_path / "calls")}
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}


def submitted(slurm: dict[str, str], *words: str, **more: str) -> tuple[int, list[str]]:
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch"), *words], env=slurm | more, cwd=Path(slurm["CALLS"]).parent, check=False)
    return done.returncode, Path(slurm["CALLS"]).read_text().splitlines()


def test_slurm_tasks_become_ranks(slurm: dict[str, str]) -> None:
    code, calls = submitted(slurm, "recipe=grpo_math", "output_dir=/x y")
    assert code == 0
    assert calls == [f"{rank}/4 {rank % 2}/2 node-07:21007 -m rlkit.run recipe=grpo_math output_dir=/x y" for rank in range(4)]


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (2, False), (1, False)])
def test_a_stopped_slurm_job_is_queued_again_and_goes_on_in_the_same_folder(slurm: dict[str, str], code: int, requeued: bool) -> None:
    ended, calls = submitted(slurm, "recipe=grpo_math", RC=str(code))
    assert ended == code
    assert all(call.endswith(f"output_dir={Path(slurm['CALLS']).parent}/runs/slurm-41007") for call in calls[:4])
    assert calls[4:] == (["requeue 41007"] if requeued else [])


# -- shell -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["local.sh", "setup.sh", "slurm.sbatch"])
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    tool = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(tool), "--external-sources", f"launch/{script}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# -- Kubernetes --------------------------------------------------------------------------------------------------------------------


def only(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """A JSON schema of an object with these fields and no others."""
    return {"type": "object", "properties": required | optional, "required": list(required), "additionalProperties": False}


STRING, INTEGER, BOOLEAN, STRINGS = ({"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "object"})
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?([KMGT]i?)?$"}}
PARAMETERS = {"type": "object", "additionalProperties": STRING}
CONTAINER = only(
    {"name": STRING, "image": STRING, "resources": only({"limits": QUANTITIES, "requests": QUANTITIES})},
    env={"type": "array", "items": only({"name": STRING, "value": STRING})},
    volumeMounts={"type": "array", "items": only({"name": STRING, "mountPath": STRING})},
)
VOLUME = only({"name": STRING}, persistentVolumeClaim=only({"claimName": STRING}), emptyDir=only({}, medium=STRING, sizeLimit=STRING))
POD = only({"spec": only({"containers": {"type": "array", "items": CONTAINER}}, volumes={"type": "array", "items": VOLUME})})
WORKERS = only(
    {"groupName": STRING, "rayStartParams": PARAMETERS, "template": POD, "maxReplicas": INTEGER, "minReplicas": INTEGER}, replicas=INTEGER
)
CLUSTER = only(
    {"headGroupSpec": only({"rayStartParams": PARAMETERS, "template": POD})},
    rayVersion=STRING,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
# The fields of ray.io/v1 RayJob that are used, after its CustomResourceDefinition in KubeRay 1.2 and later.
RAY_JOB = only(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": only({"name": STRING}),
        "spec": only(
            {"entrypoint": STRING, "rayClusterSpec": CLUSTER},
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
            shutdownAfterJobFinishes=BOOLEAN,
            ttlSecondsAfterFinished=INTEGER,
            backoffLimit=INTEGER,
        ),
    }
)


def test_the_kubernetes_file_has_only_fields_that_kuberay_knows() -> None:
    job = yaml.safe_load((LAUNCH / "kuberay.yaml").read_text())
    jsonschema.validate(job, RAY_JOB)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"] = 8  # KubeRay takes strings there
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'string'"):
        jsonschema.validate(job, RAY_JOB)


def test_the_kubernetes_job_asks_for_what_its_pods_have() -> None:
    spec = yaml.safe_load((LAUNCH / "kuberay.yaml").read_text())["spec"]
    words = spec["entrypoint"].split()
    asked = dict(word.split("=") for word in words[3:])
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    (container,) = workers["template"]["spec"]["containers"]
    assert words[:3] == ["python", "-m", "launch.ray"]
    assert int(asked["nodes"]) == workers["replicas"] and asked["gpus_per_node"] == container["resources"]["limits"]["nvidia.com/gpu"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert any(asked["output_dir"].startswith(f"{mount}/") for mount in mounts)
    ours = {"nodes", "gpus_per_node"}
    dry = [
        sys.executable,
        "-m",
        "launch.ray",
        *(f"{k}={v}" for k, v in asked.items() if k in ours),
        f"recipe={asked['recipe']}",
        "dry_run=true",
    ]
    done = subprocess.run(dry, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "16 processes" in done.stdout) == (0, True), done.stderr


# -- Docker ------------------------------------------------------------------------------------------------------------------------


def test_the_image_takes_in_all_that_an_install_needs() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for source in line.split()}
    assert {"rlkit", "recipes", "rewards", "launch", "pyproject.toml", "README.md", "LICENSE"} <= copied
    assert all((ROOT / source).exists() for source in copied)
    verbs = set(re.findall(r"^([A-Z]+) ", text, re.MULTILINE))
    assert verbs <= {"ARG", "FROM", "RUN", "WORKDIR", "ENV", "COPY", "ENTRYPOINT", "CMD"}
    assert set(re.findall(r'--editable "\.\[(.*?)\]"', text)) == {"cpu", "$EXTRA"}


def test_no_script_of_launch_is_without_a_test() -> None:
    tried = {
        "constraints-cpu.txt",
        "constraints-gpu.txt",
        "local.sh",
        "setup.sh",
        "slurm.sbatch",
        "kuberay.yaml",
        "Dockerfile",
        "README.md",
        "grafana.json",  # tests/report/test_prometheus.py
    }
    here = {path.name for path in LAUNCH.iterdir() if path.is_file() and path.suffix != ".py"}
    assert here == tried
    assert all(os.access(LAUNCH / name, os.X_OK) for name in ("local.sh", "slurm.sbatch"))


# -- the README --------------------------------------------------------------------------------------------------------------------

README = (LAUNCH / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python -m (launch\.\w+|rlkit\.run) ([^`\n]*)", README)))


@pytest.mark.parametrize(("module", "words"), COMMANDS)
def test_the_commands_of_the_readme_are_understood(module: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_launch([*words.split(), "dry_run=true"]) == 0
    assert "grpo_math" in capsys.readouterr().out
    assert "WORLD_SIZE" not in os.environ  # the next plan in this process is one of its own ranks


def test_the_readme_names_every_file_and_only_keys_that_are_there() -> None:
    assert all(f"`{path.name}`" in README for path in LAUNCH.iterdir() if path.is_file() and path.name not in ("README.md", "__init__.py"))
    used = set(re.findall(r"`(\w+)=[^=`]*`", README)) | set(re.findall(r"`(\w+_minutes|max_restarts)`", README))
    assert used - {"RLKIT_RANKS"} <= set(LaunchSection.model_fields)
    assert {f"RAY_{name}" for name in re.findall(r"RAY_(health_check_\w+)=", README)} == {
        env["name"] for env in head_env() if "health" in env["name"]
    }


def head_env() -> list[dict[str, str]]:
    spec = yaml.safe_load((LAUNCH / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]
    found: list[dict[str, str]] = spec["template"]["spec"]["containers"][0]["env"]
    return found
