"""Text and tokens to train and validate on."""

from .documents import Documents, load_documents
from .tokens import pack_tokens, train_tokenizer

__all__ = ["Documents", "load_documents", "pack_tokens", "train_tokenizer"]
