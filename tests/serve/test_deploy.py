"""What is shipped to deploy: its steps lead to a server that answers, as closed as the printed command."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from gateways import call

from hebbline.commands.gateway import gateway_parser
from hebbline.serve.openai.metrics import Metrics
from hebbline.serve.triton.process import Ports, free_ports, kill_group, server_flags
from hebbline.serve.triton.production import CPU_TAG, IMAGE
from hebbline.serve.triton.wheel import find_wheel

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/hebbline"
HELM = shutil.which("helm")
GO = shutil.which("go")
SPRIG = Path("/usr/share/gocode/src/github.com/Masterminds/sprig")
CLOSED = server_flags("/models", Ports(), "KEY")
HEBBLINE = Path(sys.executable).with_name("hebbline")


def flags_of(script, models, tmp_path):
    """The arguments of the program that a container's script ends with, where `models` is mounted at /models."""
    models.mkdir(exist_ok=True)
    (models / "hebbline-0.1.0-py3-none-any.whl").touch()
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("pip", "tritonserver", "hebbline"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {programs}/said\n')
        (programs / name).chmod(0o755)
    script = mounted(script, models)
    path = os.pathsep.join([str(programs), os.defpath])
    subprocess.run(["sh", "-c", script], env={"PATH": path}, check=True)
    said = (programs / "said").read_text().replace(str(models), "/models").splitlines()
    return [re.sub(r"body=[0-9a-f-]{36}$", "body=KEY", argument) for argument in said]


def mounted(script, models):
    """A container's script with the place of its repository on this machine."""
    return re.sub(r"/models\b(?!\.)", str(models), script)


def check_scripts(triton, gateway, tmp_path):
    """That a server is closed, and takes further models where the repository has a list of them."""
    assert flags_of(triton, tmp_path / "one", tmp_path) == CLOSED
    (tmp_path / "several").mkdir(exist_ok=True)
    (tmp_path / "several" / "models.json").touch()
    with_more = flags_of(triton, tmp_path / "several", tmp_path)
    assert set(with_more) - set(CLOSED) == {"--load-model=model-control"} and set(CLOSED) <= set(with_more)
    command, *options = flags_of(gateway, tmp_path / "one", tmp_path)
    assert command == "gateway"
    values = gateway_parser().parse_args(options)
    assert str(values.artifact) == "/models/llm/1/artifact" and values.api_keys is not None
    assert values.url == "127.0.0.1:8001" and values.host == "0.0.0.0" and str(values.repository) == "/models"
    return values


def compose(**environment):
    """The services of the Compose file, with variables put in as Compose does."""
    text = re.sub(
        r"(?<!\$)\$\{(\w+):-([^}]*)\}",
        lambda found: environment.get(*found.groups()),
        (DEPLOY / "compose.yaml").read_text(),
    )
    return yaml.safe_load(text.replace("$$", "$"))["services"]


def test_compose_opens_the_gateway_alone_on_the_loopback_interface(tmp_path):
    services = compose()
    assert {name: service.get("ports") for name, service in services.items()} == {
        "triton": ["127.0.0.1:8080:8080"],
        "gateway": None,
    }
    assert services["gateway"]["network_mode"] == "service:triton"
    assert {service["image"] for service in services.values()} == {f"{IMAGE}:{CPU_TAG}"}
    check_scripts(*(services[name]["command"][2] for name in ("triton", "gateway")), tmp_path)
    assert all(volume.endswith(":ro") for service in services.values() for volume in service["volumes"])


def test_compose_takes_tls_traces_and_an_address(tmp_path):
    options = "--tls-certificate=/tls/server.pem --tls-key=/tls/server.key --otlp-endpoint=http://collector:4318"
    services = compose(HEBBLINE_OPTIONS=options, HEBBLINE_SCHEME="https", HEBBLINE_ADDRESS="192.0.2.1:443")
    values = check_scripts(*(services[name]["command"][2] for name in ("triton", "gateway")), tmp_path)
    assert (str(values.tls_certificate), str(values.tls_key)) == ("/tls/server.pem", "/tls/server.key")
    assert values.otlp_endpoint == "http://collector:4318"
    assert services["triton"]["ports"] == ["192.0.2.1:443:8080"]
    assert services["gateway"]["healthcheck"]["test"][-1] == "https://127.0.0.1:8080/health/ready"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, long_artifact, tiny_artifact):
    """What the steps of the documentation make, here with a second model."""
    directory = tmp_path_factory.mktemp("deployed")
    text = (ROOT / "docs/gateway.md").read_text()
    steps = re.search(r"```sh\n(mkdir deployment\n.*?)```", text, re.S)[1].splitlines()
    here = [step for step in steps if not step.startswith(("docker", "curl", "pip wheel"))]
    assert len(here) == len(steps) - 3
    (directory / "deploy").symlink_to(DEPLOY)
    environment = {
        "PATH": os.pathsep.join([str(HEBBLINE.parent), os.defpath]),
        "HEBBLINE_ARTIFACT": f"{long_artifact} small={tiny_artifact} --slots 2 --threads 1",
        "HOME": str(directory),
    }
    subprocess.run(["sh", "-ec", "\n".join(here)], cwd=directory, env=environment, check=True, capture_output=True)
    (directory / "deployment/models/hebbline-0.1.0-py3-none-any.whl").touch()
    return directory / "deployment"


@contextlib.contextmanager
def running(script, mounts, environment, log):
    """A process that runs a container's script here, where its mounts are, without what pip would install."""
    script = re.sub(r"^pip install .* &&$", "", script, flags=re.M)
    for inside, outside in mounts.items():
        script = script.replace(inside, outside)
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["sh", "-c", script], env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        kill_group(process)


def program(path, *words):
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    path.chmod(0o755)


def test_the_steps_lead_to_a_server_that_answers(deployment, tmp_path):
    wheel, ports, api = find_wheel(), free_ports(), free_ports()
    wheel.assemble_backends(tmp_path / "backends")
    flags = (f"--backend-directory={tmp_path / 'backends'}", "--exit-timeout-secs=3")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tritonserver").write_text(f'#!/bin/sh\nexec {wheel.binary} "$@" {shlex.join(flags)}\n')
    (tmp_path / "bin/tritonserver").chmod(0o755)
    program(tmp_path / "bin/hebbline", HEBBLINE)
    environment = wheel.environment()
    environment |= {"PATH": os.pathsep.join([str(tmp_path / "bin"), environment["PATH"]])}
    models = deployment / "models"
    mounts = {
        "/keys/": f"{deployment}/",
        "0.0.0.0": "127.0.0.1",
        **{"8001": str(ports.grpc), "8000": str(ports.http), "8002": str(ports.metrics), "8080": str(api.grpc)},
    }
    triton, gateway = (compose()[name]["command"][2] for name in ("triton", "gateway"))
    served = SimpleNamespace(url=f"http://127.0.0.1:{api.grpc}")
    key = (deployment / "alice.key").read_text().strip()
    with (
        running(mounted(triton, models), mounts, environment, tmp_path / "triton.log"),
        running(mounted(gateway, models), mounts, environment, tmp_path / "gateway.log"),
    ):
        names = wait_served(served, key, 2, tmp_path / "gateway.log")
        assert names == ["llm", "small"] and call(served, "/v1/models")[0] == 401
        for name in names:
            body = {"model": name, "prompt": "the quick", "max_tokens": 3}
            status, answer, _ = call(served, "/v1/completions", body, key=key)
            assert (status, answer["usage"]["completion_tokens"]) == (200, 3)


def wait_served(served, key, count, log, seconds=60):
    """The names of the models, once the deployment generates and has so many of them."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if call(served, "/health/ready")[0] == 200:
                names = [model["id"] for model in call(served, "/v1/models", key=key)[1]["data"]]
                if len(names) >= count:
                    return names
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Renders the chart: by Helm, or by the template engine and the functions that it is made of."""
    if HELM is not None:
        return lambda values: [HELM, "template", "r", CHART, *(word for value in values for word in ("--set", value))]
    if GO is None or not SPRIG.is_dir():
        pytest.skip("neither helm is installed, nor golang-go with golang-github-masterminds-sprig-dev")
    directory = tmp_path_factory.mktemp("chart")
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(directory / "cache"),
    }
    source = Path(__file__).with_name("chart.go")
    subprocess.run([GO, "build", "-o", directory / "chart", source], env=environment, check=True)
    return lambda values: [directory / "chart", "r", CHART, *values]


@pytest.fixture(scope="session")
def helm(template):
    """Helm's outcome with some values."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    facts = {
        "Chart": {name[0].upper() + name[1:]: value for name, value in chart.items()},
        "Values": yaml.safe_load((CHART / "values.yaml").read_text()),
    }
    return lambda *values: subprocess.run(template(values), input=json.dumps(facts), capture_output=True, text=True)


@pytest.fixture(scope="session")
def rendered(helm):
    """The documents of the chart by their kind."""

    def render(*values):
        done = helm("repository.claim=models", "apiKeysSecret=keys", *values)
        assert done.returncode == 0, done.stderr
        return {document["kind"]: document for document in yaml.safe_load_all(done.stdout) if document}

    return render


def containers(documents):
    return {entry["name"]: entry for entry in documents["Deployment"]["spec"]["template"]["spec"]["containers"]}


def test_the_chart_is_as_closed_as_the_printed_command(rendered, tmp_path):
    documents = rendered()
    assert set(documents) == {"Deployment", "Service", "NetworkPolicy"}
    parts = containers(documents)
    values = check_scripts(parts["triton"]["args"][0], parts["gateway"]["args"][0], tmp_path)
    assert values.tls_certificate is None and values.otlp_endpoint is None and values.port == 8080
    assert {part["image"] for part in parts.values()} == {f"{IMAGE}:{CPU_TAG}"}
    assert "ports" not in parts["triton"] and [p["containerPort"] for p in parts["gateway"]["ports"]] == [8080]
    assert documents["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    for name, probe in (("triton", "livenessProbe"), ("gateway", "readinessProbe")):
        assert parts[name][probe]["httpGet"]["path"] == "/health/ready", "which generates a token"


EVERYTHING = (
    *("gpus=1", "runtime=tensorrt-cu13==11.4", "tlsSecret=tls", "otlpEndpoint=http://collector:4318"),
    *("autoscaling.enabled=true", "metricsKeySecret=m"),
)


def test_the_chart_with_a_gpu_tls_traces_metrics_and_an_autoscaler(rendered, tmp_path):
    documents = rendered(*EVERYTHING)
    parts = containers(documents)
    assert parts["triton"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert '"numpy<2" tensorrt-cu13==11.4 &&' in parts["triton"]["args"][0]
    values = check_scripts(parts["triton"]["args"][0], parts["gateway"]["args"][0], tmp_path)
    assert str(values.tls_certificate) == "/tls/tls.crt" and values.otlp_endpoint == "http://collector:4318"
    assert parts["gateway"]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    (metric,) = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "hebbline_waiting"
    (endpoint,) = documents["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https" and endpoint["authorization"]["credentials"] == {"name": "m", "key": "key"}


def test_kubernetes_knows_every_field(rendered):
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    documents = [*rendered(*EVERYTHING).values(), *yaml.safe_load_all((DEPLOY / "helm/claim.yaml").read_text())]
    own = [document for document in documents if document["kind"] != "ServiceMonitor"]  # of Prometheus' operator
    assert len(own) == 6
    for document in own:
        validate(document, "1.31", strict=True)


@pytest.mark.parametrize("name", ["repository.claim", "apiKeysSecret"])
def test_the_chart_says_what_it_lacks(helm, name):
    given = {"repository.claim": "models", "apiKeysSecret": "keys", name: ""}
    done = helm(*(f"{path}={value}" for path, value in given.items()))
    assert done.returncode != 0 and f"{name}: the " in done.stderr


def test_the_dashboard_asks_for_metrics_that_there_are():
    from hebbline.serve.counts import TOTALS

    dashboard = json.loads((DEPLOY / "grafana/hebbline.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"\bhebbline_\w+", text)}
    exposed = set(re.findall(r"^# TYPE (\w+)", Metrics().exposition(), re.M))
    ours = exposed | {f"{name}_bucket" for name in exposed} | {f"hebbline_{name}_total" for name in TOTALS}
    ours |= {"hebbline_waiting", "hebbline_running", "hebbline_cache_blocks", "hebbline_cache_blocks_used"}
    assert len(expressions) >= 8 and asked <= ours, asked - ours
