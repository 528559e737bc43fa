"""The options of sampling that `hebbline query` and `hebbline chat` have in common."""

import sys
from typing import Any

from ..artifacts import InputError
from ..console import Parser
from ..serve.parameters import SamplingParameters

DEFAULT = SamplingParameters()


def add_sampling_options(parser: Parser) -> None:
    """Add them to a parser."""
    parser.add_argument("--max-tokens", type=int, default=DEFAULT.max_tokens, help="the most tokens to generate")
    parser.add_argument("--temperature", type=float, default=DEFAULT.temperature, help="0: greedy")
    parser.add_argument("--top-k", type=int, default=DEFAULT.top_k, help="keep the k most likely tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=DEFAULT.top_p, help="keep this probability's worth of tokens")
    parser.add_argument("--min-p", type=float, default=DEFAULT.min_p, help="keep this share of the best; 0: all")
    parser.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
    parser.add_argument("--stop", type=str, action="append", default=[], help="end before this string; may be repeated")


def sampling_from(values: Any) -> SamplingParameters:
    """The parameters from parsed options; InputError where one is wrong."""
    return SamplingParameters(
        max_tokens=values.max_tokens,
        temperature=values.temperature,
        top_k=values.top_k,
        top_p=values.top_p,
        min_p=values.min_p,
        seed=values.seed,
        stop=tuple(checked_text(stop, "--stop") for stop in values.stop),
    )


def checked_text(text: str, name: str) -> str:
    """A text of the command line; InputError where its bytes are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 at character {error.start}") from error
    return text


def read_standard_input() -> str:
    """All of standard input; InputError where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 at byte {error.start}") from error


def write_now(text: str) -> None:
    """Write to standard output at once; a character that its encoding lacks is written as a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()
