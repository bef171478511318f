"""Read a model of Clara Train: its configuration said as a MONAI Bundle, its network as ONNX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from md_mmar.archive import AIAA, Archive, is_archive, read_archive
from md_mmar.translate import IMAGE, Notes, inference_of, metadata_of
from mdcli.errors import ConfigError, MissingError, UnavailableError

if TYPE_CHECKING:
    from mdcli.inference.formats import ModelFolder, Opening

MODELS = "models"
FROZEN = ".fzn.pb"
_INSTALL = "pip install 'md-mmar[tensorflow]'"
# What else lies in `models/`, and what makes a network of it that is read here.
_REFUSED = {
    ".trt.pb": "is built by TensorRT for one GPU; export.sh also makes model.fzn.pb",
    ".pt": "are weights in a pickle; export.sh makes model.ts of them",
    ".ckpt": "is a checkpoint of the training; export.sh makes model.fzn.pb of it",
    ".index": "is a checkpoint of the training; export.sh makes model.fzn.pb of it",
    ".meta": "is a checkpoint of the training; export.sh makes model.fzn.pb of it",
}


class Mmar:
    """Reads an MMAR: a folder with `config/` and `models/`."""

    name = "mmar"

    def recognises(self, path: Path) -> bool:
        """Say whether a folder is laid out as an MMAR. See `Format.recognises`."""
        return path.is_dir() and is_archive(path)

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model. See `Format.read`.

        Raises:
            ConfigError: `bad-mmar`, `unsupported-mmar`, `unsupported-transform`, `refused-expression`, `modality-unknown`; those of
                the core's `MonaiBundle.read`; those of the network's conversion.
            MissingError: `no-network`, `no-cache`.
            UnavailableError: `no-engine` where what converts is not installed.
        """
        from mdcli.inference.formats import digest_of
        from mdcli.inference.formats.bundle import MonaiBundle

        archive = read_archive(path)
        notes: Notes = []
        inference, metadata = inference_of(archive, notes), metadata_of(archive, path.name, notes)
        network = network_file(archive)
        if opening.cache is None:
            raise MissingError(
                "no-cache", f"{path.name} has to be converted, and there is no folder for what is converted"
            )
        sha256 = digest_of(path, [*archive.files, network])
        made = network
        if network.name.endswith(FROZEN):
            made, more = _converted(network, archive, inference, metadata, opening)
            notes += more
        bundle = _bundle(opening.cache, path.name, {"metadata": metadata, "inference": inference}, made)
        found = MonaiBundle().read(bundle, opening)
        return dataclasses.replace(
            found, sha256=sha256, notes=tuple(dict.fromkeys((*notes, *found.notes))), folder=path
        )


def network_file(archive: Archive) -> Path:
    """Return the network's file: ONNX where somebody has put one there, TorchScript, or a frozen graph.

    Raises:
        ConfigError: `unsupported-mmar` where only others are there, with the way from those to one of these; `outside-folder`.
        MissingError: `no-network`.
    """
    folder = archive.folder / MODELS
    # A path of the configuration is a name in models/: where else it leads is not followed.
    named = PurePosixPath(archive.loader).name.split(".")[0]
    stems = list(dict.fromkeys(stem for stem in (named, "model", "final_model") if stem))
    for suffix in (".onnx", ".ts", FROZEN):
        for stem in stems:
            found = folder / f"{stem}{suffix}"
            if found.is_file():
                if not found.resolve().is_relative_to(archive.folder.resolve()):
                    raise ConfigError("outside-folder", f"{MODELS}/{found.name} is a link to outside the MMAR")
                return found
    present = sorted(path.name for path in folder.iterdir())
    for name in present:
        why = next((why for suffix, why in _REFUSED.items() if name.endswith(suffix)), None)
        if why:
            hint = "or put the network as model.onnx into models/"
            raise ConfigError("unsupported-mmar", f"{MODELS}/{name[:60]} {why}", hint=hint)
    wanted = " or ".join(f"{stem}.onnx, .ts, {FROZEN}" for stem in stems)
    raise MissingError("no-network", f"{archive.folder.name} has no {MODELS}/{wanted}")


def _converted(
    network: Path, archive: Archive, inference: dict[str, Any], metadata: dict[str, Any], opening: Opening
) -> tuple[Path, Notes]:
    """Return the ONNX network that a frozen graph is converted to, by md-tensorflow."""
    try:
        from md_tensorflow.convert import Port, to_onnx
    except ImportError as error:
        raise UnavailableError("no-engine", f"{network.name} needs the plugin md-tensorflow", hint=_INSTALL) from error
    sizes = inference["inferer"].get("roi_size")
    whole = isinstance(sizes, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    if not whole:
        raise ConfigError(
            "unsupported-mmar", f"{network.name} has to be converted with a fixed window, and none is said"
        )
    channels = metadata["network_data_format"]["inputs"][IMAGE]["num_channels"]
    # Clara Train's networks have C first; a graph that does not is refused, for its sizes don't fit.
    given, wanted = _tensors(archive)
    converted = to_onnx(
        network,
        cache=opening.cache,
        trust=opening.trust,
        inputs=[Port(given, False, (channels, *sizes))],
        outputs=[Port(wanted, False)],
        engine=opening.engine if opening.engine in ("onnxruntime", "openvino") else "onnxruntime",
    )
    return converted.path, list(converted.notes)


def _tensors(archive: Archive) -> tuple[str | None, str | None]:
    """Return the names of the graph's input and output, where the configuration says them."""
    inference = archive.aiaa.get("inference")
    mapping = inference.get("node_mapping") if isinstance(inference, dict) else None
    if not isinstance(mapping, dict) or len(mapping) != 2 or not all(isinstance(name, str) for name in mapping):
        return None, None
    image = inference.get("image", "image") if isinstance(inference, dict) else "image"
    inputs = [name for name, field in mapping.items() if field == image]
    outputs = [name for name, field in mapping.items() if field != image]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConfigError(
            "unsupported-mmar", f"{AIAA}: node_mapping has {len(inputs)} inputs and {len(outputs)} outputs"
        )
    return inputs[0], outputs[0]


def _bundle(cache: Path, name: str, configs: dict[str, Any], network: Path) -> Path:
    """Return the folder of a bundle that says the same as the MMAR, made once for this configuration and this network.

    Raises:
        ConfigError: `bad-network` where the network changes while it is read.
    """
    from mdcli.inference.formats import sha256_of
    from mdcli.inference.naming import slug

    sha256 = sha256_of(network)
    said = json.dumps([configs, network.suffix, sha256], sort_keys=True)
    target = cache / f"mmar-{hashlib.sha256(said.encode()).hexdigest()}"
    bundle = target / (slug(name) or "mmar")
    if bundle.is_dir():
        return bundle
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="mmar-", dir=cache))
    try:
        inner = made / bundle.name
        (inner / MODELS).mkdir(parents=True)
        (inner / "configs").mkdir()
        for word, document in configs.items():
            (inner / "configs" / f"{word}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        copied = inner / MODELS / f"model{network.suffix}"
        shutil.copyfile(network, copied)
        if sha256_of(copied) != sha256:
            raise ConfigError("bad-network", f"{network.name} changed while it was read")
        try:
            made.rename(target)
        except OSError:
            # Another process was faster, and made the same.
            if not bundle.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return bundle


FORMAT = Mmar()
