"""The way to the runner of a published ONNX artifact: which of its two graphs runs, and in which class."""

import logging
from pathlib import Path
from typing import Literal

from ..artifacts import InputError, KvFormat
from .cache_size import pool_blocks
from .onnxruntime import KERNELS_MODEL_FILE, MODEL_FILE, OnnxRunner, language_model_facts
from .portable import PortableRunner
from .varlen import PagedVarlenRunner, VarlenRunner

logger = logging.getLogger(__name__)

Graph = Literal["auto", "kernels", "portable"]


def open_onnx(
    artifact: Path,
    slots: int,
    threads: int | None = None,
    *,
    graph: Graph = "auto",
    kv: KvFormat | None = None,
    cache_bytes: int | None = None,
) -> OnnxRunner:
    """The runner of a published artifact; every file is verified before it is read.

    Args:
        artifact: the directory.
        slots: the number of sequences that can be held at a time.
        threads: of ONNX Runtime within an operator; None takes one for each physical core.
        graph: "kernels" needs the op library; "portable" does without; "auto" takes the first where it can, with a
            warning where it cannot.
        kv: how keys and values are kept. "float32" is exact; "bfloat16" takes half of its memory and "int8" (a
            scale for each token and head) about a quarter, in less time. Only the op library has these two. None:
            as the artifact was exported, or exactly where there is no op library.
        cache_bytes: where the op library can, keep them in a pool of blocks that sequences share, of at most so many
            bytes; 0: of a size by slots and free memory, see `pool_blocks`. None: each slot has its own.

    Raises:
        InputError: the directory is no artifact of a language model, is damaged, or ONNX Runtime cannot load it;
            `kv` or `graph` ask for what there is not.
    """
    facts = language_model_facts(artifact)
    fast = artifact / KERNELS_MODEL_FILE
    if graph == "kernels" and not fast.is_file():
        raise InputError(f"{artifact} has no {KERNELS_MODEL_FILE}: export the model again")
    if graph != "portable" and fast.is_file():
        blocks = None if cache_bytes is None else pool_blocks(facts, slots, cache_bytes, kv)
        kept = kv or facts.kv_cache
        try:
            if blocks is not None:
                return PagedVarlenRunner(fast, facts, slots, threads, kept, num_blocks=blocks)
            return VarlenRunner(fast, facts, slots, threads, kept)
        except InputError as error:
            if graph == "kernels" or kv not in (None, "float32"):
                raise
            logger.warning("%s is run without the op library, which is slower: %s", artifact, error)
    if kv not in (None, "float32"):
        raise InputError(f"keys and values as {kv} need the op library; the portable graph keeps float32")
    return PortableRunner(artifact / MODEL_FILE, facts, slots, threads)
