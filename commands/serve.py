"""`hebbline serve ARTIFACT`."""

import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import KV_FORMATS, CheckError, InputError, LanguageModelFacts
from ..console import Parser, console, print_json
from ..serve.addresses import LOOPBACK
from ..serve.triton.settings import AS_EXPORTED, Settings
from .connection_options import credentials
from .gateway import add_gateway_options, further_of, gateway_config, tracing_of
from .grpc_options import add_grpc_options, grpc_tls

if TYPE_CHECKING:
    from ..serve.openai.server import GatewayServer
    from ..serve.triton.launch import TritonServer
    from ..serve.triton.production import ProductionCommand


def main(arguments: list[str]) -> int:
    """Fill a model repository from an artifact and run Triton on it until Ctrl-C or SIGTERM."""
    values = _parser().parse_args(arguments)
    if values.repository is None and (values.copy or values.fill_only):
        raise InputError("--copy and --fill-only need --repository DIR: where the repository is to stay")
    settings = Settings(
        values.slots, values.threads, values.max_waiting, values.drain_seconds, values.kv_cache, values.cache_bytes
    )
    run_directory = Path(tempfile.mkdtemp(prefix="hebbline-serve-"))
    keep_log = False
    try:
        with _sigterm_as_interrupt():
            _serve(values, settings, run_directory)
    except KeyboardInterrupt:
        console.print("stopped")
    except CheckError:
        keep_log = True  # the message names it
        raise
    finally:
        if not keep_log:
            shutil.rmtree(run_directory)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="hebbline serve", description="Serve an artifact over gRPC with Triton Inference Server.")
    parser.add_argument("artifact", type=Path, help="a directory that `hebbline export` published")
    parser.add_argument(
        "further", type=str, nargs="*", metavar="NAME=ARTIFACT", help="further models, by the names that clients call"
    )
    parser.add_argument(
        "--model-control", action="store_true", help="let `hebbline models` load and unload further models meanwhile"
    )
    parser.add_argument(
        "--draft", type=Path, default=None, help="artifact of a smaller model of the same vocabulary, to guess tokens"
    )
    parser.add_argument("--repository", type=Path, default=None, help="keep the model repository here")
    parser.add_argument("--copy", action="store_true", help="copy the artifact into the repository, not link it")
    parser.add_argument("--fill-only", action="store_true", help="fill the repository and start no server")
    parser.add_argument("--grpc-port", type=int, default=8001, help="of the service that clients use")
    parser.add_argument("--http-port", type=int, default=8000, help="of the HTTP service")
    parser.add_argument("--metrics-port", type=int, default=8002, help="of the Prometheus metrics")
    parser.add_argument("--slots", type=int, default=Settings.slots, help="sequences that are generated at a time")
    parser.add_argument("--threads", type=int, default=Settings.threads, help="of the runtime; 0: one a physical core")
    parser.add_argument(
        "--max-waiting", type=int, default=Settings.max_waiting, help="requests that may wait for a slot"
    )
    parser.add_argument(
        "--drain-seconds", type=int, default=Settings.drain_seconds, help="what open requests get to finish at the end"
    )
    parser.add_argument(
        "--kv-cache",
        choices=[AS_EXPORTED, *KV_FORMATS],
        default=Settings.kv_cache,
        help="how keys and values are kept: float32 is exact, bfloat16 takes half of its memory, int8 a quarter",
    )
    parser.add_argument("--openai-port", type=int, default=None, help="serve OpenAI's HTTP API and a web page here")
    add_gateway_options(parser)
    add_grpc_options(parser)
    parser.add_argument(
        "--cache-bytes",
        type=int,
        default=Settings.cache_bytes,
        help="the most memory for keys and values; 0: enough for all slots, at most a quarter of what is free",
    )
    parser.add_argument("--json", action="store_true", help="print addresses, log and process id as JSON once ready")
    return parser


def _serve(values: Any, settings: Settings, run_directory: Path) -> None:
    from ..serve.triton.launch import TritonServer
    from ..serve.triton.process import Ports
    from ..serve.triton.repository import fill_repository
    from ..serve.triton.wanted import parse_further

    ports = Ports(values.grpc_port, values.http_port, values.metrics_port)
    tls = grpc_tls(values)
    production = _production_commands(values) if values.copy else []
    repository = values.repository or run_directory / "repository"
    console.print(f"checking {values.artifact} and filling the repository {repository}")
    further = parse_further(values.further) if values.further or values.model_control else None
    facts = fill_repository(
        values.artifact, repository, settings, copy=values.copy, further=further, draft=values.draft
    )
    _print_model(facts, settings)
    if values.copy:
        _print_production(production, values)
    if not values.fill_only:
        server = TritonServer(
            repository,
            run_directory,
            ports,
            drain_seconds=settings.drain_seconds,
            on_event=_print_event,
            grpc_host=values.grpc_host,
            tls=tls,
        )
        gateway = _gateway(values, server, repository)
        with _stopping_quietly(server, settings, gateway):
            _run(server, repository, gateway, values.json)


def _gateway(values: Any, server: "TritonServer", repository: Path) -> "GatewayServer | None":
    """The gateway that is asked for; what is wrong with its options is said before anything is started."""
    if values.openai_port is None:
        if values.host != LOOPBACK:
            raise InputError("--host is the address of OpenAI's API: give --openai-port as well")
        return None
    from ..serve.openai.app import Gateway
    from ..serve.openai.server import GatewayServer

    config = gateway_config(values, values.openai_port, values.artifact)
    gateway = Gateway(
        config,
        values.artifact,
        server.grpc_url,
        f"http://127.0.0.1:{server.ports.metrics}/metrics",
        further=further_of(repository),
        credentials=credentials(values),
        tracing=tracing_of(values),
    )
    server.on_restart = gateway.metrics.restarts.inc
    running = GatewayServer(gateway)
    running.check_free()
    return running


def _run(server: "TritonServer", repository: Path, gateway: "GatewayServer | None", as_json: bool) -> None:
    from ..serve.triton.wanted import read_wanted
    from ..serve.triton.wheel import TRITON_VERSION

    console.print(f"starting Triton {TRITON_VERSION}; its log is {server.log}")
    server.start()
    with console.status("loading the model") as status:
        server.wait_ready(lambda seconds: status.update(f"loading the model ({seconds:.0f} s)"))
    ports = server.ports
    http_url = f"http://127.0.0.1:{ports.http}"
    if gateway is not None:
        gateway.start()
    if (choice := server.graph_choice) is not None:
        console.print(str(choice))
    console.print(f"ready: gRPC at [bold]{server.grpc_url}[/bold], metrics at http://127.0.0.1:{ports.metrics}/metrics")
    console.print(f'  hebbline query "Once upon a time" --url {server.grpc_url}', style="bold", soft_wrap=True)
    if further := read_wanted(repository):
        console.print(f"further models: {', '.join(further)} (hebbline models list {repository})", soft_wrap=True)
    if gateway is not None:
        console.print(
            f"OpenAI's API at [bold]{gateway.url}/v1[/bold] (model '{gateway.model_name}'), a page at {gateway.url}/"
        )
    console.print(
        f"This is the Triton {TRITON_VERSION} of the nvidia-pytriton wheel, for this machine's loopback interface. "
        f"In production run NVIDIA's container on the same repository: `--repository DIR --copy` shows how."
    )
    console.print("Ctrl-C ends the server")
    if as_json:
        addresses = {"grpc_url": server.grpc_url, "http_url": http_url}
        addresses |= {"graph": choice.graph} if choice is not None else {}
        addresses |= {"openai_url": f"{gateway.url}/v1"} if gateway is not None else {}
        print_json({**addresses, "log": str(server.log), "repository": str(repository), "pid": server.pid})
    server.wait()


def _print_event(message: str) -> None:
    # The server outlives a terminal or a pipe that is closed.
    with contextlib.suppress(OSError):
        print(f"hebbline serve: {message}", file=sys.stderr, flush=True)


def _print_model(facts: LanguageModelFacts, settings: Settings) -> None:
    console.print(
        f"{facts.num_layers} layers, vocabulary of {facts.vocab_size:,}, context of {facts.context_length:,} tokens; "
        f"{settings.slots} slots, keys and values in {settings.kv or facts.kv_cache}"
    )


def _production_commands(values: Any) -> "list[ProductionCommand]":
    from ..runtime.engines import read_engines
    from ..serve.triton.production import production_commands

    controlled = bool(values.further or values.model_control)
    return production_commands(
        values.repository, read_engines(values.artifact), values.grpc_port, controlled=controlled
    )


def _print_production(commands: "list[ProductionCommand]", values: Any) -> None:
    console.print("In production, with a wheel of hebbline in this directory, from hebbline's sources:")
    wheels = shlex.quote(str(values.repository.absolute()))
    console.print(f"pip wheel --no-deps --wheel-dir {wheels} .", style="bold", markup=False)
    for production in commands:
        console.print(f"On a machine {production.machine}:")
        console.print(production.command, style="bold", markup=False)
    console.print(
        f"Inference, health and statistics can be reached, by gRPC at 127.0.0.1:{values.grpc_port}, and nothing else; "
        "in front of other machines belongs what encrypts and authenticates (docs/serving.md)"
    )


@contextlib.contextmanager
def _stopping_quietly(server: "TritonServer", settings: Settings, gateway: "GatewayServer | None") -> Iterator[None]:
    """Stop the server at the end of the block; from there on signals wait, as the stop takes seconds at most."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if server.pid is not None:
            console.print(f"stopping; open requests have {settings.drain_seconds} s to finish")
        server.stop()
        if gateway is not None:
            gateway.stop()


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the server as Ctrl-C does; both signals are as before after the block."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell starts its background jobs with SIGINT ignored; here it is asked for.
    for number in previous:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
