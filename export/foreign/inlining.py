"""Weights that a model-local function takes as an argument: such functions are inlined, so that the weight is constant.

Functions whose weights are their own constants stay functions, and are packed in place.
"""

from dataclasses import replace

from onnx import inliner

from ...artifacts import InputError
from .bodies import Body, FunctionKey, all_bodies, function_key
from .document import Document
from .files import quoted
from .folding import Constants
from .linears import rank_of
from .weights import NotConstant, chain_input, trace

_PRODUCTS = ("MatMul", "Gemm")


def inline_weight_functions(document: Document) -> Document:
    """The document with every function inlined that multiplies by an argument for which some caller gives a constant.

    Each round inlines at least one function; a call that comes to light in a body is found in the next.
    """
    while selected := _selected(document):
        try:
            inlined = inliner.inline_selected_functions(document.proto, sorted(selected))
        except Exception as error:  # the inliner has no exception class of its own
            names = ", ".join(f"{domain}.{name}" for domain, name in sorted(selected))
            raise InputError(f"{document.path}: functions {quoted(names)} cannot be inlined: {error}") from error
        document = replace(document, proto=inlined)
    return document


def _selected(document: Document) -> set[tuple[str, str]]:
    bodies = all_bodies(document.proto)
    uses, constants = _weight_arguments(bodies), Constants(document, bodies)
    selected = set()
    for body in bodies:
        for node in body.nodes:
            names = [node.input[place] for place in uses.get(function_key(node), ()) if place < len(node.input)]
            if any(name and (constants.computed(body, name) or _is_matrix(body, name)) for name in names):
                selected.add((node.domain, node.op_type))
    return selected


def _is_matrix(body: Body, name: str) -> bool:
    constant = trace(body, name)
    return not isinstance(constant, NotConstant) and rank_of(constant) >= 2


def _weight_arguments(bodies: list[Body]) -> dict[FunctionKey, set[int]]:
    """For each function, the places of the inputs that it, or a function that it calls, multiplies by."""
    uses: dict[FunctionKey, set[int]] = {}
    arguments: dict[FunctionKey, list[str]] = {}
    for body in bodies:
        if body.is_function:
            key = function_key(body.proto)  # type: ignore[arg-type]
            uses[key], arguments[key] = set(), list(body.proto.input)  # type: ignore[arg-type]
    changed = True
    while changed:
        before = sum(map(len, uses.values()))
        for body in bodies:
            _note_uses(body, uses, arguments)
        changed = sum(map(len, uses.values())) != before
    return uses


def _note_uses(body: Body, uses: dict[FunctionKey, set[int]], arguments: dict[FunctionKey, list[str]]) -> None:
    if not body.root.is_function:
        return
    key = function_key(body.root.proto)  # type: ignore[arg-type]
    for node in body.nodes:
        called = function_key(node)
        places = range(2) if called[:2] in {("", name) for name in _PRODUCTS} else uses.get(called, ())
        for place in places:
            name = chain_input(body, node.input[place]) if place < len(node.input) else None
            if name in arguments[key]:
                uses[key].add(arguments[key].index(name))
