"""The manifests: valid by Kubernetes' schemas, consistent with each other, with commands that our parsers take. No cluster is asked."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from paddleseg_ext.cli import args as flags

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/k8s"
VERSIONS = ("1.30", "1.37")  # the first in which all that is used is stable, and a late one
DRAIN = 30  # seconds that the server takes at most to finish what it has accepted


def documents():
    """(file, document) of every manifest."""
    files = [path for path in sorted(FOLDER.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [(path.name, document) for path in files for document in yaml.safe_load_all(path.read_text())]


def pod(document):
    """The pod of a document, or nothing."""
    if document["kind"] == "InferenceService":
        return document["spec"]["predictor"]
    return document.get("spec", {}).get("template", {}).get("spec")


def named(pair):
    return f"{pair[1]['kind']} {pair[1]['metadata']['name']}" if isinstance(pair, tuple) else str(pair)


DOCUMENTS = documents()
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
PODS = [(file, document) for file, document in DOCUMENTS if pod(document)]
CONTAINERS = [(file, document, c) for file, document in PODS for c in pod(document)["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("item", [d for d in DOCUMENTS if d[1]["kind"] != "InferenceService"], ids=named)
def test_it_is_valid_by_the_schema(item, version):
    kubernetes_validate.validate(item[1], version, strict=True)


def test_the_schema_notices_a_wrong_field():
    document = yaml.safe_load((FOLDER / "student.yaml").read_text())
    document["spec"]["template"]["spec"]["containers"][0]["arguments"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_the_inference_service_is_a_valid_pod_with_the_fields_that_kserve_adds():
    """Its schema is KServe's, which is not at hand: what remains without KServe's own fields must be a pod."""
    (document,) = (d for _, d in DOCUMENTS if d["kind"] == "InferenceService")
    assert document["apiVersion"] == "serving.kserve.io/v1beta1" and set(document["spec"]) == {"predictor"}
    predictor = dict(document["spec"]["predictor"])
    own = {name: predictor.pop(name) for name in ("labels", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")}
    assert own["scaleMetric"] == "cpu" and 0 < own["minReplicas"] <= own["maxReplicas"]
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": predictor}, VERSIONS[-1], strict=True
    )
    assert predictor["containers"][0]["name"] == "kserve-container", "the name by which KServe knows the model's"


def test_both_teachers_run_the_same_containers():
    deployment, service = (
        [c for f, _, c in CONTAINERS if f == file] for file in ("teacher.yaml", "teacher-kserve.yaml")
    )
    assert len(deployment) == len(service) == 1
    for one, other in zip(deployment, service, strict=True):
        assert {k: v for k, v in one.items() if k not in ("name", "ports")} == {
            k: v for k, v in other.items() if k not in ("name", "ports")
        }


def test_the_kustomization_lists_every_file_and_one_kind_of_teacher():
    listed = set(KUSTOMIZATION["resources"])
    files = {file for file, _ in DOCUMENTS}
    assert listed == files - {"teacher-kserve.yaml"}
    made = {Path(f).name for secret in KUSTOMIZATION["secretGenerator"] for f in secret["files"]}
    readme = (FOLDER / "README.md").read_text()
    assert made and all(f"deploy/k8s/secrets/{name}" in readme for name in made), "the README says how to make them"
    assert (FOLDER / ".gitignore").read_text().split() == ["secrets/"]


@pytest.mark.parametrize(("file", "document"), PODS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_a_pod_refers_to_is_there(file, document):
    secrets = {s["name"]: {Path(f).name for f in s["files"]} for s in KUSTOMIZATION["secretGenerator"]}
    claims = {d["metadata"]["name"] for _, d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    volumes = {volume["name"]: volume for volume in pod(document)["volumes"]}
    mounted = set()
    for container in pod(document)["containers"]:
        for mount in container["volumeMounts"]:
            mounted.add(mount["name"])
            volume = volumes[mount["name"]]
            if "secret" in volume:
                keys = secrets[volume["secret"]["secretName"]]
                items = {item["key"] for item in volume["secret"].get("items", [])}
                assert items <= keys
                for word in [*container["command"], *container.get("args", [])]:
                    path = Path(word.rpartition("=")[2])
                    if str(path.parent) == mount["mountPath"]:
                        assert path.name in (items or keys), f"{word} is not mounted"
            elif "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
    assert mounted == set(volumes), "a volume that nobody mounts"


def test_services_and_the_autoscaler_find_what_they_name():
    labels = [d["spec"]["template"]["metadata"]["labels"] for _, d in PODS if d["kind"] != "InferenceService"]
    addresses = set()
    for _, document in DOCUMENTS:
        if document["kind"] == "Service":
            assert document["spec"]["selector"] in labels
            addresses |= {f"{document['metadata']['name']}:{port['port']}" for port in document["spec"]["ports"]}
        if document["kind"] == "HorizontalPodAutoscaler":
            target = document["spec"]["scaleTargetRef"]
            (scaled,) = (d for _, d in PODS if (d["kind"], d["metadata"]["name"]) == (target["kind"], target["name"]))
            assert "replicas" not in scaled["spec"], "the autoscaler and the manifest would fight over it"
            (metric,) = document["spec"]["metrics"]
            measured = metric["containerResource"]
            (container,) = (c for c in pod(scaled)["containers"] if c["name"] == measured["container"])
            assert measured["name"] in container["resources"]["requests"], "a share of what?"
    used = {
        word.partition("=")[2]
        for _, _, c in CONTAINERS
        for word in c.get("args", [])
        if word.startswith(("--db_endpoints", "--discovery"))
    }
    assert used == addresses


@pytest.mark.parametrize(("file", "document", "container"), CONTAINERS, ids=lambda x: x if isinstance(x, str) else "")
def test_containers_have_limits_and_no_more_rights_than_they_need(file, document, container):
    assert set(container["resources"]["requests"]) >= {"cpu", "memory"} and "memory" in container["resources"]["limits"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert pod(document)["securityContext"]["runAsNonRoot"] is True
    assert pod(document)["automountServiceAccountToken"] is False
    words = " ".join([*container["command"], *container.get("args", [])])
    assert "password=" not in words and "token=" not in words, "secrets come as files"
    ports = {port["containerPort"] for port in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "grpc" in container.get(probe, {}):
            assert container[probe]["grpc"]["port"] in ports
    assert not ports or {"readinessProbe", "livenessProbe"} <= set(container)


def test_teachers_have_the_time_to_finish_what_they_accepted():
    for file, document in PODS:
        if file.startswith("teacher"):
            assert pod(document)["terminationGracePeriodSeconds"] > DRAIN


def commands(name):
    """Each different way in which the containers start something, word by word, without `python`."""
    found = {(*c["command"], *c.get("args", [])) for _, _, c in CONTAINERS}
    found = {words for words in found if re.search(rf"\b{name}\b", " ".join(words))}
    assert found and all(words[0] == "python" for words in found)
    return [[word.replace("$(POD_IP)", "127.0.0.1") for word in words[1:]] for words in found]


@pytest.mark.parametrize("name", ["balance_server", "serve"])
def test_the_servers_take_their_flags(name):
    """Run as the container would, they get past the parser, and then miss what is only in the cluster."""
    for words in commands(name):
        process = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert process.returncode == 2 and "usage:" not in process.stderr, process.stderr
        assert process.stderr.splitlines()[-1].startswith("error: "), process.stderr


def test_the_student_takes_its_flags():
    script = "slim/distill/distill_train.py"
    parser = flags.parser("as the script has it, which would import all of Paddle first")
    flags.add_distillation(parser, distill_config="")
    flags.add_training(parser)
    for words in commands(script):
        launched = words.index(script)
        assert words[:2] == ["-m", "paddle.distributed.launch"] and (ROOT / script).exists()
        args = parser.parse_args(words[launched + 1 :])
        assert args.discovery == "balance:7001" and args.teacher_service == "teacher"


def test_the_image_has_what_the_commands_import_and_the_readme_builds_it():
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+)", dockerfile, re.MULTILINE)
    assert {"requirements.txt", "paddleseg_ext", "slim"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / "deploy/docker/Dockerfile.dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert "USER 1000" in dockerfile
    (build,) = (
        shlex.split(line) for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("docker build")
    )
    assert (ROOT / build[build.index("-f") + 1]).exists()
    image = build[build.index("-t") + 1]
    assert [i["name"] for i in KUSTOMIZATION["images"]] == [image]
    assert {c["image"] for _, _, c in CONTAINERS} == {image, "redis:7.4-alpine"}
