"""`hebbline query "text"`."""

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..console import Parser, console, print_json
from ..serve.parameters import SamplingParameters
from .connection_options import add_connection_options, connect
from .sampling_options import add_sampling_options, checked_text, read_standard_input, sampling_from, write_now

if TYPE_CHECKING:
    from ..serve.client import Client

STANDARD_INPUT = "-"


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
    sampling = sampling_from(values)
    text = read_standard_input() if values.text == STANDARD_INPUT else checked_text(values.text, "the prompt")
    measure = _stream(text, connect(values, values.model), sampling, show=not values.json)
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
    parser.add_argument("text", type=str, help="the prompt; - reads standard input")
    add_connection_options(parser)
    parser.add_argument("--model", type=str, default=None, help="its name on the server; llm where it is left out")
    add_sampling_options(parser)
    parser.add_argument("--json", action="store_true", help="print text, counts and times as JSON at the end")
    return parser


def _stream(text: str, connected: "Client", sampling: SamplingParameters, show: bool) -> _Measure:
    measure = _Measure()
    started = time.perf_counter()
    with connected as client, closing(client.stream(text, sampling)) as chunks:
        for chunk in chunks:
            measure.seconds = time.perf_counter() - started
            measure.seconds_to_first_token = measure.seconds_to_first_token or measure.seconds
            measure.text += chunk.text
            if show:
                write_now(chunk.text)
    measure.finish_reason = chunk.finish_reason
    measure.num_input_tokens, measure.num_output_tokens = chunk.num_input_tokens, chunk.num_output_tokens
    return measure
