"""The keys of KubeRay's RayCluster and RayJob (v1) that our manifests use, and the types of their values.

No package of a registry holds the published definitions, so this is a list of our own: a key that is misspelt, or in
the wrong place, is in no list. The manifests were compared once with the definitions of KubeRay 1.7.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
NUMBER: Schema = {"type": "integer", "minimum": 0}
SWITCH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def keys(required: str = "", **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


CONTAINER_SECURITY = keys(
    "allowPrivilegeEscalation capabilities",
    allowPrivilegeEscalation={"const": False},
    capabilities=keys("drop", drop={"const": ["ALL"]}),
)
CONTAINER = keys(
    "name image securityContext resources",
    name=TEXT,
    image=TEXT,
    securityContext=CONTAINER_SECURITY,
    envFrom=many(keys("secretRef", secretRef=keys("name", name=TEXT))),
    resources=keys("requests limits", requests=TEXTS, limits=TEXTS),
    volumeMounts=many(keys("name mountPath", name=TEXT, mountPath=TEXT)),
)
POD_SECURITY = keys(
    "runAsNonRoot runAsUser runAsGroup",
    runAsNonRoot={"const": True},
    runAsUser={"type": "integer", "minimum": 1},
    runAsGroup={"type": "integer", "minimum": 1},
    fsGroup=NUMBER,
    fsGroupChangePolicy=one_of("OnRootMismatch"),
    seccompProfile=keys("type", type=one_of("RuntimeDefault")),
)
POD = keys(
    "spec metadata",
    metadata=keys("labels", labels=TEXTS),
    spec=keys(
        "containers securityContext restartPolicy",
        restartPolicy=one_of("Never"),
        automountServiceAccountToken=SWITCH,
        securityContext=POD_SECURITY,
        nodeSelector=TEXTS,
        tolerations=many(keys("key operator value", key=TEXT, operator=one_of("Equal"), value=TEXT)),
        containers=many(CONTAINER),
        volumes=many(
            keys(
                "name",
                name=TEXT,
                emptyDir=keys("medium", medium=one_of("Memory")),
                persistentVolumeClaim=keys("claimName", claimName=TEXT),
            )
        ),
    ),
)
CLUSTER_SPEC = keys(
    "rayVersion authOptions headGroupSpec workerGroupSpecs enableInTreeAutoscaling",
    rayVersion=TEXT,
    authOptions=keys("mode", mode=one_of("token")),
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=keys(version=one_of("v1", "v2"), idleTimeoutSeconds=NUMBER, securityContext=CONTAINER_SECURITY),
    headGroupSpec=keys(
        "rayStartParams template serviceType",
        serviceType=one_of("ClusterIP"),
        enableIngress={"const": False},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs=many(
        keys(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)


def resource(kind: str, api: str, spec: Schema) -> Schema:
    named = keys("name namespace", name=TEXT, namespace=TEXT, labels=TEXTS)
    return keys(
        "apiVersion kind metadata spec", apiVersion={"const": api}, kind={"const": kind}, metadata=named, spec=spec
    )


SELECTOR = keys("matchLabels", matchLabels=TEXTS)
SCHEMAS = {
    "RayCluster": resource("RayCluster", "ray.io/v1", CLUSTER_SPEC),
    "RayJob": resource(
        "RayJob",
        "ray.io/v1",
        keys(
            "entrypoint rayClusterSpec shutdownAfterJobFinishes submitterPodTemplate",
            entrypoint=TEXT,
            shutdownAfterJobFinishes={"const": True},
            ttlSecondsAfterFinished=NUMBER,
            backoffLimit=NUMBER,
            submissionMode=one_of("K8sJobMode"),
            submitterPodTemplate=POD,
            rayClusterSpec=CLUSTER_SPEC,
        ),
    ),
    "NetworkPolicy": resource(
        "NetworkPolicy",
        "networking.k8s.io/v1",
        keys(
            "podSelector policyTypes ingress",
            podSelector=SELECTOR,
            policyTypes={"const": ["Ingress"]},
            ingress=many(keys("from", **{"from": many(keys(podSelector=SELECTOR, namespaceSelector=SELECTOR))})),
        ),
    ),
}
