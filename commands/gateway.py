"""`hebbline gateway ARTIFACT`: OpenAI's API, health, metrics and a web page in front of a Triton server."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Parser, console
from ..serve.addresses import LOOPBACK
from ..serve.openai.config import GatewayConfig
from .connection_options import add_connection_options, credentials

if TYPE_CHECKING:
    from ..serve.openai.catalogue import FurtherModels
    from ..serve.openai.tracing import Tracing


def main(arguments: list[str]) -> int:
    """Serve OpenAI's API for a model that a Triton server has, until Ctrl-C or SIGTERM."""
    values = gateway_parser().parse_args(arguments)
    from ..serve.openai.app import Gateway
    from ..serve.openai.server import GatewayServer

    config = gateway_config(values, values.port, values.artifact)
    gateway = Gateway(
        config,
        values.artifact,
        values.url,
        values.metrics_url,
        further=further_of(values.repository),
        credentials=credentials(values),
        tracing=tracing_of(values),
    )
    server = GatewayServer(gateway)
    console.print(
        f"OpenAI's API at [bold]{config.url}/v1[/bold] (model '{config.model_name}'), a page at {config.url}/"
    )
    server.run()
    return 0


def gateway_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="hebbline gateway", description="Serve OpenAI's HTTP API in front of a Triton server.")
    parser.add_argument("artifact", type=Path, help="what the server serves; its tokenizer and chat template are read")
    add_connection_options(parser)
    parser.add_argument(
        "--repository", type=Path, default=None, help="of the server: serve the further models that it lists as well"
    )
    parser.add_argument(
        "--metrics-url", type=str, default=None, help="of Triton's metrics, to publish them with the gateway's own"
    )
    parser.add_argument("--port", type=int, default=8080, help="of the HTTP service")
    add_gateway_options(parser)
    return parser


def further_of(repository: Path | None) -> "FurtherModels":
    """The further models that a repository lists at the moment; none where there is no repository."""
    from ..serve.openai.catalogue import no_further_models
    from ..serve.triton.repository import further_models

    return no_further_models if repository is None else partial(further_models, repository)


def add_gateway_options(parser: Parser) -> None:
    """The options that a gateway has wherever it is started."""
    parser.add_argument("--host", type=str, default=LOOPBACK, help="the address at which OpenAI's API listens")
    parser.add_argument("--model-name", type=str, default=None, help="by which requests call the model")
    parser.add_argument("--api-keys", type=Path, default=None, help="a file that `hebbline keys` keeps")
    parser.add_argument("--tls-certificate", type=Path, default=None, help="PEM file; the API is then HTTPS")
    parser.add_argument("--tls-key", type=Path, default=None, help="PEM file of the certificate's key")
    parser.add_argument("--client-ca", type=Path, default=None, help="PEM file: ask for certificates signed by these")
    parser.add_argument("--request-log", type=Path, default=None, help="write a line of JSON for each request here")
    parser.add_argument("--otlp-endpoint", type=str, default=None, help="of an OpenTelemetry collector: send traces")
    parser.add_argument("--log-text", action="store_true", help="write prompts and completions there as well")


def tracing_of(values: Any) -> "Tracing | None":
    """Where requests leave traces, by parsed options; None: nowhere."""
    if values.otlp_endpoint is None:
        return None
    from ..serve.openai.tracing import Tracing, collector_provider

    return Tracing(collector_provider(values.otlp_endpoint))


def gateway_config(values: Any, port: int, artifact: Path) -> GatewayConfig:
    """The configuration from parsed options; the model's name is by default that of the artifact's directory."""
    return GatewayConfig(
        port=port,
        host=values.host,
        model_name=values.model_name or artifact.resolve().name,
        api_keys=values.api_keys,
        tls_certificate=values.tls_certificate,
        tls_key=values.tls_key,
        client_ca=values.client_ca,
        request_log=values.request_log,
        log_text=values.log_text,
    )
