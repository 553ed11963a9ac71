"""What of KubeRay's definitions the examples use: its version 1.7, `ray.io/v1`.

Its own are 2 MB, most of it what Kubernetes says of pods. A template is a pod's here, of which
Kubernetes' definitions say the rest; fields that no example has are left out.
"""

TEXT, NUMBER, FLAG, ANY = ({"type": t} for t in ("string", "integer", "boolean", "object"))


def record(required="", **fields):
    names = required.split()
    return ANY | {"additionalProperties": False, "required": names, "properties": fields}


def several(of):
    return {"type": "array", "items": of}


def one_of(*words):
    return TEXT | {"enum": list(words)}


def resource(kind, spec):
    fields = {"apiVersion": one_of("ray.io/v1"), "kind": one_of(kind), "metadata": ANY}
    return record("apiVersion kind metadata spec", **fields, spec=spec)


GROUP = {"rayStartParams": ANY | {"additionalProperties": TEXT}, "template": ANY}
REPLICAS = dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "priority"), NUMBER)
WORKERS = record("groupName maxReplicas minReplicas template", groupName=TEXT, **REPLICAS, **GROUP)
CLUSTER = record(
    "headGroupSpec",
    rayVersion=TEXT,
    headGroupSpec=record("template", **GROUP),
    workerGroupSpecs=several(WORKERS),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=NUMBER,
        env=several(record("name", name=TEXT, value=TEXT)),
    ),
    gcsFaultToleranceOptions=record(backend=one_of("redis", "rocksdb"), storage=record(size=TEXT)),
)
JOB = record(
    entrypoint=TEXT, shutdownAfterJobFinishes=FLAG, backoffLimit=NUMBER, rayClusterSpec=CLUSTER
)

SCHEMAS = {"RayCluster": resource("RayCluster", CLUSTER), "RayJob": resource("RayJob", JOB)}
