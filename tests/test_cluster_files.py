"""The files that make clusters: against the schemas of who reads them, and against each other."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.main import get_command

from stylize_batch import submission
from stylize_batch.cli import app
from stylize_batch.engine.placement import Resources, place
from stylize_batch.job.spec import JobSpec, make_spec
from stylize_batch.settings import Device
from stylize_batch.submission import command

REPOSITORY = Path(__file__).parent.parent
KUBERNETES = "1.31"
"""Whose published schema the pods are held against, unknown fields being errors."""

COMMANDS: Any = cast("Any", get_command(app)).commands


def load(path: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / path).read_text())


def pod_of(group: dict[str, Any]) -> dict[str, Any]:
    """The pod that KubeRay makes of a group's template."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}


def settings_of(line: str) -> dict[str, Any]:
    """Read a command line as `run` or `submit` itself does; an unknown option is an error."""
    words = shlex.split(line)
    verb = next(word for word in words if word in ("run", "submit"))
    context = COMMANDS[verb].make_context(verb, words[words.index(verb) + 1 :])
    return {name: value for name, value in context.params.items() if value is not None}


def examples() -> list[str]:
    """Return the commands that users of the cluster files are told to run."""
    files = [REPOSITORY / name for name in ("cluster.yaml", "docs/clusters.md")]
    told = [line for file in files for line in re.findall(r"stylize-batch submit s3:.*", file.read_text())]
    return [load("jobs/rayjob.yaml")["spec"]["entrypoint"], *told]


def test_cluster_yaml_is_what_ray_up_accepts() -> None:
    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    config = load("cluster.yaml")
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]
    assert config["available_node_types"]["gpu"]["max_workers"] == config["max_workers"]
    for node in config["available_node_types"].values():
        assert {"ImageId", "IamInstanceProfile"} <= set(node["node_config"]), (
            "Ray's own are old, and may do too much"
        )


def test_cluster_yaml_mounts_what_pip_needs_as_the_dockerfile_copies_it() -> None:
    mounts = load("cluster.yaml")["file_mounts"]
    kept = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {remote: local for remote, local in mounts.items() if "auth_token" not in remote} == {
        f"~/stylize-batch/{line[1:]}": line[1:] for line in kept if line.startswith("!")
    }


def test_rayjob_yaml_is_what_kuberay_accepts() -> None:
    schema = json.loads((REPOSITORY / "tests/rayjob.schema.json").read_text())
    job = load("jobs/rayjob.yaml")
    jsonschema.validate(job, schema)
    for damage in ({"backofLimit": 1}, {"ttlSecondsAfterFinished": "1h"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**job, "spec": {**job["spec"], **damage}}, schema)
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    for pod in (cluster["headGroupSpec"], workers, {"template": job["spec"]["submitterPodTemplate"]}):
        kubernetes_validate.validate(pod_of(pod), KUBERNETES, strict=True)
        for container in pod["template"]["spec"]["containers"]:
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            for name in limits:
                assert requests[name] == limits[name], (
                    "a pod that may use more than it asked for is evicted first"
                )
    settings = settings_of(job["spec"]["entrypoint"])
    assert int(settings["actors"]) == workers["maxReplicas"]
    assert settings["address"] == "auto"


@pytest.mark.parametrize("line", examples())
def test_what_is_run_on_the_clusters_of_these_files_suits_nodes_that_are_not_up_yet(line: str) -> None:
    head: Resources = {}  # which is all that there is at first
    settings = settings_of(line)
    device: Device = settings.get("device", "cpu")  # which a run takes that finds no GPU
    asked = place([head], {device: int(settings.get("actors", 0)) or None}, own=False, shards=100)[device]
    assert asked.num_gpus == 1
    assert settings["max_failed"] == "1%"  # since nothing is known of nodes that are not up yet


@pytest.mark.parametrize(
    "damage",
    [{"serviceAcountName": "x"}, {"tolerations": [{"effect": 1}]}, {"containers": [{"image": "x"}]}],
    ids=["unknown field", "wrong type", "container without a name"],
)
def test_damaged_pods_are_told_from_sound_ones(damage: dict[str, Any]) -> None:
    template = load("jobs/rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    damaged = {"template": {"spec": {**template["spec"], **damage}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod_of(damaged), KUBERNETES, strict=True)


def test_all_cluster_files_name_one_version_of_ray_and_say_how_many_values_to_change() -> None:
    named = {
        re.search(r"rayproject/ray:([\d.]+)-", load("cluster.yaml")["docker"]["image"]),
        re.search(r"([\d.]+)", load("jobs/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"]),
        re.search(r"ARG RAY=([\d.]+)", (REPOSITORY / "Dockerfile").read_text()),
    }
    assert len({match[1] for match in named if match}) == 1
    for path, number in (("cluster.yaml", "seven"), ("jobs/rayjob.yaml", "four")):
        text = (REPOSITORY / path).read_text()
        assert f"Change the {number} values marked CHANGE" in text
        assert len(re.findall(r"# CHANGE", text)) == {"four": 4, "seven": 7}[number]


def test_the_images_have_one_python_and_ours_the_patch_version_that_ray_compares() -> None:
    ours = re.search(r"^ARG PYTHON=(\d+)\.(\d+)\.\d+$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert ours
    assert f"-py{ours[1]}{ours[2]}-" in load("cluster.yaml")["docker"]["image"]


def test_pods_that_are_ended_have_time_to_hand_back_their_shard_before_they_are_killed() -> None:
    (workers,) = load("jobs/rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    drain = {each["name"]: each["value"] for each in container["env"]}[
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    ]
    assert 30 < float(drain) < pod["terminationGracePeriodSeconds"]


def test_rayjob_yaml_gives_no_container_more_than_it_needs() -> None:
    spec = load("jobs/rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    head, worker = cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]
    submitter = spec["submitterPodTemplate"]["spec"]
    # KubeRay adds it to the head's pod.
    autoscaler = {"name": "autoscaler", "securityContext": cluster["autoscalerOptions"]["securityContext"]}
    head["containers"].append(autoscaler)
    kubernetes_validate.validate(pod_of(cluster["headGroupSpec"]), KUBERNETES, strict=True)
    for container in head["containers"] + worker["containers"] + submitter["containers"]:
        # As Kubernetes' Pod Security Standard `restricted` wants it.
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for pod in (worker, submitter):
        assert pod["automountServiceAccountToken"] is False, (
            "with the head's account they could change the cluster"
        )
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"


def test_the_docker_context_holds_what_is_copied_and_little_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert copied
    assert set(copied) == set(kept)
    files = [
        path
        for name in kept
        for path in [REPOSITORY / name, *(REPOSITORY / name).rglob("*")]
        if path.is_file()
    ]
    files = [path for path in files if not fnmatch.fnmatch(str(path), "*/__pycache__/*")]
    assert {path.name for path in files} >= {*copied[:-1], "cli.py"}
    assert sum(path.stat().st_size for path in files) < 40e6
    assert "USER 1000" in dockerfile


def test_the_versions_a_cluster_must_have_are_those_of_the_package() -> None:
    assert f"ray>={submission.OLDEST_RAY}" in (metadata.requires("stylize-batch") or [])
    assert metadata.metadata("stylize-batch")["Requires-Python"] == f">={submission.OLDEST_PYTHON}"


def test_every_setting_of_a_run_reaches_the_cluster() -> None:
    given: dict[str, Any] = {
        "manifest": "s3://b/it's here/*.parquet", "output": "s3://b/out", "model": "adain-vgg16", "size": 300, "crop": 256,
        "style_size": 100, "styles": "s3://b/bank.parquet", "layout": "webdataset", "format": "webp", "quality": 80, "metrics": False, "batch_size": 3, "actors": "cuda=8,cpu=4",
        "gpus_per_actor": 0.5, "device": "auto", "precision": "bf16", "shard_pairs": 7, "retry_failed": True, "overwrite": True,
        "max_failed": "2%", "limit": 5, "as_json": True,
    }  # fmt: skip
    assert set(given) == set(JobSpec.model_fields) - {"address", "in_process", "content", "style", "build"}, (
        "a new setting needs a value here"
    )
    for installed in (True, False):
        line = command(make_spec(given), installed)
        understood = settings_of(line)
        assert understood.pop("address") == "auto"
        assert understood.pop("no_metrics") is True
        assert make_spec({**understood, "metrics": False}) == make_spec(given)
    dataset: dict[str, Any] = {"content": "s3://b/c", "style": "s3://b/s", "output": "s3://b/o"}
    paired = make_spec({**dataset, "build": {"alpha": "0.5..1", "styles_per_content": 3}})
    understood = settings_of(command(paired, installed=True))
    assert understood.pop("address") == "auto"
    assert make_spec(understood, understood.pop("job")) == paired
    assert command(make_spec({"manifest": "s3://b/m", "output": "s3://b/o"}), True) == (
        "stylize-batch run s3://b/m --output s3://b/o --address auto"
    )
