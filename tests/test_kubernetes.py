"""The manifests of examples/kubernetes: what KubeRay takes, and what a run needs of its pods."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kuberay
import pytest
import yaml
from data import REPOSITORY, environment

EXAMPLES = REPOSITORY / "examples" / "kubernetes"
JOB = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
CLUSTER = yaml.safe_load((EXAMPLES / "raycluster.yaml").read_text())
SPECS = {"job": JOB["spec"]["rayClusterSpec"], "cluster": CLUSTER["spec"]}
WORKERS = [group for spec in SPECS.values() for group in spec["workerGroupSpecs"]]

PARSED = """
import json, sys
from fairseq_ray_plugin import compat, launch
compat.apply()
from fairseq import options
launch.register(default_address="auto")
args = options.parse_args_and_arch(options.get_training_parser(), json.loads(sys.argv[1]))
config = launch._config_or_exit(args)
print(json.dumps([config.ray_address, config.fix_batch_size, args.save_dir, args.arch]))
"""


def of_quantity(text):
    """Bytes, as Kubernetes writes them."""
    number, unit = re.fullmatch(r"([\d.]+)(Gi|Mi)?", text).groups()
    return float(number) * {"Gi": 2**30, "Mi": 2**20, None: 1}[unit]


def pod_of(group):
    spec = group["template"]["spec"]
    return spec, spec["containers"][0]


@pytest.mark.parametrize("manifest", [JOB, CLUSTER], ids=["job", "cluster"])
def test_kuberay_takes_the_manifests(manifest):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(manifest, kuberay.SCHEMAS[manifest["kind"]])


@pytest.mark.parametrize("manifest", [JOB, CLUSTER], ids=["job", "cluster"])
def test_kuberays_own_definitions_say_the_same(manifest):
    """KUBERAY_CRDS is a folder with ray.io_*.yaml of its Helm chart."""
    folder = os.environ.get("KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KUBERAY_CRDS names no folder")
    import jsonschema

    path = Path(folder) / f"ray.io_{manifest['kind'].lower()}s.yaml"
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    [schema] = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    ours = kuberay.SCHEMAS[manifest["kind"]]["properties"]["spec"]
    assert [] == list(differences(ours, schema["properties"]["spec"], "spec"))
    closed(schema)
    jsonschema.validate(manifest, schema)


def differences(ours, theirs, name):
    """Between a definition of ours and KubeRay's, which has more fields."""
    is_quantity = "x-kubernetes-int-or-string" in theirs
    if ours["type"] != ("string" if is_quantity else theirs["type"]):
        yield f"{name} is of type {theirs['type']}"
    for key in ("enum", "required"):
        if sorted(ours.get(key, [])) != sorted(theirs.get(key, [])):
            yield f"{name}: {key} {theirs.get(key)}"
    if "items" in ours:
        yield from differences(ours["items"], theirs["items"], f"{name}[]")
    for field, definition in ours.get("properties", {}).items():
        if field not in theirs["properties"]:
            yield f"{name} has no {field}"
        elif field != "template":
            yield from differences(definition, theirs["properties"][field], f"{name}.{field}")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_kubernetes_takes_the_pods(spec):
    """By its own definitions, and no field that it does not know."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    data = yaml.safe_load((EXAMPLES / "data.yaml").read_text())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for resource in (data, *(pod | {"spec": pod_of(group)[0]} for group in groups)):
        kubernetes_validate.validate(resource, "1.34", strict=True)


def closed(schema):
    """Kubernetes drops fields that a definition does not know; here they are errors."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict) and properties and "type" in schema:
            schema.setdefault("additionalProperties", False)
            if "apiVersion" in properties:
                properties["metadata"] = {"type": "object"}
        # a quantity may be a number or text
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
        for part in schema.values():
            closed(part)
    elif isinstance(schema, list):
        for part in schema:
            closed(part)


def test_the_jobs_command_is_one_that_our_parser_takes():
    import shlex

    command, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert "fairseq-ray-train" == command
    parsed = subprocess.run(
        [sys.executable, "-c", PARSED, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert 0 == parsed.returncode, parsed.stderr
    expected = ["auto", [2048], "s3://BUCKET/run-1", "roberta_base"]
    assert expected == json.loads(parsed.stdout.splitlines()[-1])
    data = arguments[0]
    for group in WORKERS:
        [mount] = [m for m in pod_of(group)[1]["volumeMounts"] if m["name"] == "data"]
        assert data.startswith(mount["mountPath"] + "/"), "workers do not see the data"


@pytest.mark.parametrize("group", WORKERS, ids=lambda group: group["groupName"])
def test_a_pod_has_the_time_to_leave(group):
    from ray._private import ray_constants

    spec, container = pod_of(group)
    [seconds] = [e["value"] for e in container["env"] if "DRAIN_TIMEOUT" in e["name"]]
    [name] = [e["name"] for e in container["env"] if "DRAIN_TIMEOUT" in e["name"]]
    assert hasattr(ray_constants, name), "Ray has no such setting"
    assert 30 < float(seconds) < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("group", WORKERS, ids=lambda group: group["groupName"])
def test_the_memory_of_a_pod_has_room_for_states(group):
    spec, container = pod_of(group)
    [mount] = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    [volume] = [v["emptyDir"] for v in spec["volumes"] if v["name"] == mount["name"]]
    room = of_quantity(volume["sizeLimit"])
    object_store = float(group["rayStartParams"]["object-store-memory"])
    checkpoint, model = 2e9, 2e9 / 3
    assert "Memory" == volume["medium"]
    assert 2 * 1.4 * checkpoint + model + object_store <= room
    assert 2 * room <= of_quantity(container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_head_stays_and_trains_nothing(spec):
    head = spec["headGroupSpec"]
    assert "0" == head["rayStartParams"]["num-cpus"]
    pod, container = pod_of(head)
    assert "tolerations" not in pod
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [term] = affinity["nodeSelectorTerms"]
    assert {"NotIn"} == {expression["operator"] for expression in term["matchExpressions"]}
    avoided = {expression["key"] for expression in term["matchExpressions"]}
    for group in spec["workerGroupSpecs"]:
        if group["groupName"] == "spot":
            tolerated = {toleration["key"] for toleration in pod_of(group)[0]["tolerations"]}
            # EKS has a label and no taint of its own
            assert avoided - tolerated == {"eks.amazonaws.com/capacityType"}


def test_spot_nodes_come_first_and_the_others_stay_off_them():
    from ray.autoscaler.v2.instance_manager import config

    spot, others = CLUSTER["spec"]["workerGroupSpecs"]
    assert ("spot", "on-demand") == (spot["groupName"], others["groupName"])
    assert spot["priority"] > others["priority"]
    [patience] = CLUSTER["spec"]["autoscalerOptions"]["env"]
    assert f'"{patience["name"]}", 60 * 60' in " ".join(inspect.getsource(config).split())
    head = pod_of(CLUSTER["spec"]["headGroupSpec"])[0]
    assert head["affinity"] == pod_of(others)[0]["affinity"]


def test_all_pods_wait_for_a_head_with_storage_as_long():
    """KubeRay sets it for workers alone, and the control loop goes by its own pod's."""
    assert "rocksdb" == CLUSTER["spec"]["gcsFaultToleranceOptions"]["backend"]
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    for group in groups:
        wait = {"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": "600"}
        assert wait in pod_of(group)[1]["env"]


def test_the_versions_are_those_that_the_image_gets():
    pins = (REPOSITORY / "constraints.txt").read_text()
    [version] = re.findall(r"^ray==(.*)$", pins, re.M)
    assert {version} == {spec["rayVersion"] for spec in SPECS.values()}
    images = [pod_of(g)[1]["image"] for s in SPECS.values() for g in [s["headGroupSpec"]]]
    images += [pod_of(group)[1]["image"] for group in WORKERS]
    dockerfile = (EXAMPLES / "Dockerfile").read_text()
    assert {"REGISTRY/fairseq-ray"} == set(images) and "-t REGISTRY/fairseq-ray " in dockerfile


def test_the_image_is_made_of_what_is_in_the_checkout_by_commands_that_are_shell():
    text = re.sub(r"(?m)^#.*$", "", (EXAMPLES / "Dockerfile").read_text()).replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    copied = [path for word, rest in steps if word == "COPY" for path in rest.split()[:-1]]
    for path in [path for path in copied if not path.startswith(("--from", "/"))]:
        assert (REPOSITORY / path).exists(), f"COPY names {path}, which is not there"
    runs = [rest for word, rest in steps if word == "RUN"]
    assert 3 == len(runs)
    for command in runs:
        assert 0 == subprocess.run(["sh", "-n", "-c", command]).returncode, command
