"""`hebbline keys add|remove|list FILE`: the API keys of a gateway."""

from pathlib import Path

from ..artifacts import InputError
from ..console import Parser, console


def main(arguments: list[str]) -> int:
    """Make a key and print it, once; take one back; or list their names and limits."""
    parser = Parser(prog="hebbline keys", description="Keep the file of a gateway's API keys. It holds no key itself.")
    parser.add_argument("action", choices=["add", "remove", "list"], help="what to do")
    parser.add_argument("file", type=Path, help="as given to --api-keys")
    parser.add_argument("--name", type=str, default=None, help="of the key: to add or remove")
    parser.add_argument("--requests-per-minute", type=int, default=0, help="0: any number")
    parser.add_argument("--tokens-per-minute", type=int, default=0, help="of prompts and completions; 0: any number")
    parser.add_argument("--concurrent-requests", type=int, default=0, help="0: any number")
    values = parser.parse_args(arguments)
    from ..serve.openai.keys import add_key, read_entries, remove_key

    if values.action == "list":
        for entry in read_entries(values.file):
            limits = (entry.requests_per_minute, entry.tokens_per_minute, entry.concurrent_requests)
            print(entry.name, *(limit or "-" for limit in limits), sep="\t")
        return 0
    if values.name is None:
        raise InputError(f"--name is needed to {values.action} a key")
    if values.action == "remove":
        remove_key(values.file, values.name)
        return 0
    key = add_key(
        values.file,
        values.name,
        requests_per_minute=values.requests_per_minute,
        tokens_per_minute=values.tokens_per_minute,
        concurrent_requests=values.concurrent_requests,
    )
    console.print(f"the key of '{values.name}'; it is stored nowhere and cannot be shown again:")
    print(key)
    return 0
