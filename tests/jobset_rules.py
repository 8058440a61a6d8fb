"""Hold a JobSet against what Kubernetes would: the published schema, and the rules of its webhook and of pods.

`jobset_v1alpha2.json` is taken from the custom resource definition of JobSet 0.12.0 (kubernetes-sigs/jobset,
config/components/crd/bases): the fields that `launch/jobset.yaml` writes and the scalars beside them; all others are
refused. The schema says nothing of names and of what must agree: the rest is from the webhook of the same version
(pkg/webhooks/jobset_webhook.go) and from Kubernetes' own limits for labels, ports and extended resources.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = json.loads((Path(__file__).parent / "jobset_v1alpha2.json").read_text())
DNS_LABEL = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
DNS_SUBDOMAIN = r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?"
LABEL_VALUE = r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?"
LABEL_KEY = r"([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
RULE_NAME = r"[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?"
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}
LARGEST_ANNOTATIONS = 256 * 1024  # bytes
MOST_PODS = 100_000  # of an indexed Job


def check_jobset(jobset: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of the JobSet's first Job, or fail where Kubernetes would refuse it."""
    jsonschema.Draft202012Validator(SCHEMA).validate(jobset)
    spec, metadata = jobset["spec"], jobset["metadata"]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert metadata.keys() <= {"name", "namespace", "labels", "annotations"}
    matches(DNS_LABEL, metadata["name"])
    check_labels(metadata)
    jobs = {job["name"]: job for job in spec["replicatedJobs"]}
    assert len(jobs) == len(spec["replicatedJobs"])
    for job in jobs.values():
        check_job(metadata["name"], job)
    check_order(spec["replicatedJobs"])
    check_coordinator(metadata["name"], spec["coordinator"], jobs)
    for rule in spec["failurePolicy"]["rules"]:
        matches(RULE_NAME, rule["name"])
        assert set(rule["onJobFailureReasons"]) <= REASONS
    assert spec["failurePolicy"]["maxRestarts"] >= 0
    pods = [check_pod(job["template"]["spec"]) for job in jobs.values()]
    return pods[0]


def check_job(name: str, job: dict[str, Any]) -> None:
    """Hold one replicated Job: its pods' names, which are labels too, and that it is indexed."""
    template = job["template"]["spec"]
    matches(DNS_LABEL, job["name"])
    assert template["completionMode"] == "Indexed"
    assert 1 <= template["parallelism"] == template["completions"] <= MOST_PODS and job["replicas"] >= 1
    matches(DNS_LABEL, f"{name}-{job['name']}-{job['replicas'] - 1}-{template['completions'] - 1}-abcde")
    check_labels(template["template"]["metadata"])


def check_order(jobs: list[dict[str, Any]]) -> None:
    """Hold what a replicated Job waits for: none for the first, and only those before it for the others."""
    assert "dependsOn" not in jobs[0]
    for i, job in enumerate(jobs):
        assert {one["name"] for one in job.get("dependsOn", [])} <= {before["name"] for before in jobs[:i]}


def check_coordinator(name: str, coordinator: dict[str, Any], jobs: dict[str, Any]) -> None:
    """Hold the coordinator: there is such a pod, and its address is the value of a label."""
    job = jobs[coordinator["replicatedJob"]]
    assert coordinator["jobIndex"] < job["replicas"]
    assert coordinator["podIndex"] < job["template"]["spec"]["completions"]
    pod = f"{name}-{job['name']}-{coordinator['jobIndex']}-{coordinator['podIndex']}"
    matches(LABEL_VALUE, f"{pod}.{name}")


def check_pod(job: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a Job, held against the rules between its fields."""
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    matches(DNS_LABEL, container["name"])
    matches(DNS_SUBDOMAIN, pod["serviceAccountName"])
    assert pod["restartPolicy"] == "Never"  # a pod failure policy asks for it
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule["onExitCodes"]["containerName"] == container["name"]
        assert 0 not in rule["onExitCodes"]["values"] or rule["onExitCodes"]["operator"] != "In"
    assert pod["terminationGracePeriodSeconds"] >= 0
    for key, value in pod["nodeSelector"].items():
        matches(LABEL_KEY, key)
        matches(LABEL_VALUE, value)
    # Of what Kubernetes does not count itself nothing may be overcommitted.
    resources = container["resources"]
    assert resources["requests"] == resources["limits"] == {"google.com/tpu": resources["limits"]["google.com/tpu"]}
    ports = [port["containerPort"] for port in container["ports"]]
    assert len(set(ports)) == len(ports) and all(1 <= port <= 65535 for port in ports)
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert sorted(mount["name"] for mount in container["volumeMounts"]) == sorted(set(volumes)) == sorted(volumes)
    return pod


def check_labels(metadata: dict[str, Any]) -> None:
    """Hold labels and annotations against their lengths and characters."""
    for key, value in metadata.get("labels", {}).items():
        matches(LABEL_KEY, key)
        matches(LABEL_VALUE, value)
    annotations = metadata.get("annotations", {})
    for key, value in annotations.items():
        matches(LABEL_KEY, key)
        assert type(value) is str
    assert sum(len(key) + len(value) for key, value in annotations.items()) <= LARGEST_ANNOTATIONS


def matches(pattern: str, value: Any) -> None:
    """Fail unless a value is a string of this form."""
    assert type(value) is str and re.fullmatch(pattern, value), f"{value!r} is not {pattern}"
