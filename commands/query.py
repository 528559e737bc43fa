"""`hebbline query "text"`."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass

from ..console import Parser, console, print_json
from ..serve.sampling import SamplingParameters

DEFAULT = SamplingParameters()


@dataclass
class _Measure:
    """What a completion was and how long it took; times in seconds from when the request was sent."""

    text: str = ""
    finish_reason: str | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    seconds_to_first_token: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, over the time since it."""
        elapsed = self.seconds - self.seconds_to_first_token
        return (self.num_output_tokens - 1) / elapsed if self.num_output_tokens > 1 and elapsed > 0 else 0.0


def main(arguments: list[str]) -> int:
    """Stream a completion to stdout as it comes; Ctrl-C cancels it on the server."""
    values = _parser().parse_args(arguments)
    sampling = SamplingParameters(
        max_tokens=values.max_tokens,
        temperature=values.temperature,
        top_k=values.top_k,
        top_p=values.top_p,
        min_p=values.min_p,
        seed=values.seed,
        stop=tuple(values.stop),
    )
    measure = _stream(values.text, values.url, sampling, show=not values.json)
    if values.json:
        print_json({**vars(measure), "tokens_per_second": measure.tokens_per_second})
    else:
        print()
    console.print(
        f"{measure.num_input_tokens} tokens in, {measure.num_output_tokens} out ({measure.finish_reason}); "
        f"first after {measure.seconds_to_first_token * 1e3:.0f} ms, then {measure.tokens_per_second:.1f} tokens/s"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(prog="hebbline query", description="Stream a completion from a served model.")
    parser.add_argument("text", type=str, help="the prompt")
    parser.add_argument("--url", type=str, default="127.0.0.1:8001", help="host:port of the server's gRPC service")
    parser.add_argument("--max-tokens", type=int, default=DEFAULT.max_tokens, help="the most tokens to generate")
    parser.add_argument("--temperature", type=float, default=DEFAULT.temperature, help="0: greedy")
    parser.add_argument("--top-k", type=int, default=DEFAULT.top_k, help="keep the k most likely tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=DEFAULT.top_p, help="keep this probability's worth of tokens")
    parser.add_argument("--min-p", type=float, default=DEFAULT.min_p, help="keep this share of the best; 0: all")
    parser.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
    parser.add_argument("--stop", type=str, action="append", default=[], help="end before this string; may be repeated")
    parser.add_argument("--json", action="store_true", help="print text, counts and times as JSON at the end")
    return parser


def _stream(text: str, url: str, sampling: SamplingParameters, show: bool) -> _Measure:
    from ..serve.client import Client

    measure = _Measure()
    started = time.perf_counter()
    with Client(url) as client, closing(client.stream(text, sampling)) as chunks:
        for chunk in chunks:
            measure.seconds = time.perf_counter() - started
            measure.seconds_to_first_token = measure.seconds_to_first_token or measure.seconds
            measure.text += chunk.text
            if show:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    measure.finish_reason = chunk.finish_reason
    measure.num_input_tokens, measure.num_output_tokens = chunk.num_input_tokens, chunk.num_output_tokens
    return measure
