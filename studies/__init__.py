"""The tables of docs/results.md: methods compared on equal terms, from runs that a ledger keeps."""
