"""Changes to a sound model directory, of which each breaks one thing."""

import json

from safetensors.torch import load_file, save_file


def fields(**changed):
    """config.json with other fields; None takes one out."""

    def change(directory):
        path = directory / "config.json"
        content = json.loads(path.read_text()) | changed
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return change


def content(name, text):
    return lambda directory: (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def without(name):
    return lambda directory: (directory / name).unlink()


def weights(change):
    """model.safetensors with its tensors changed in place."""

    def rewrite(directory):
        tensors = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    return rewrite
